// Compiles the contracts by one standard-JSON call to the npm compiler and writes what operators need, ABI and bytecode,
// to the chain package. `--check` writes nothing and exits 1 where a committed file differs. Knows nothing of forge.

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";

const solc = createRequire(import.meta.url)("solc");

const HOME = fileURLToPath(new URL("..", import.meta.url));
const TARGET = join(HOME, "..", "chain", "openlora_chain", "artifacts");
const CONTRACTS = {
  NodeRegistry: "src/NodeRegistry.sol",
  ArtifactRegistry: "src/ArtifactRegistry.sol",
  Settlement: "src/Settlement.sol",
  Credits: "src/Credits.sol",
  ReceiptAnchor: "src/ReceiptAnchor.sol",
  TimelockController: "@openzeppelin/contracts/governance/TimelockController.sol",
};
const SETTINGS = {
  remappings: ["@openzeppelin/=node_modules/@openzeppelin/"],
  optimizer: { enabled: true, runs: 200 },
  evmVersion: "cancun",
  viaIR: false,
  metadata: { bytecodeHash: "none", appendCBOR: false },
};
const OUTPUTS = ["abi", "evm.bytecode.object", "evm.deployedBytecode.object", "evm.deployedBytecode.immutableReferences"];
const LARGEST_RUNTIME = 24_576;

const artifacts = render(compile());
process.exitCode = process.argv.includes("--check") ? check(artifacts) : write(artifacts);

function compile() {
  const paths = Object.values(CONTRACTS).map(onDisk);
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(paths.map((path) => [path, { content: readFileSync(join(HOME, path), "utf8") }])),
    settings: { ...SETTINGS, outputSelection: Object.fromEntries(paths.map((path) => [path, { "*": OUTPUTS }])) },
  };
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: importSource }));
  const errors = (output.errors ?? []).filter((problem) => problem.severity === "error");
  if (errors.length) throw new Error(errors.map((problem) => problem.formattedMessage).join("\n"));
  return output.contracts;
}

function onDisk(path) {
  return path.startsWith("@") ? `node_modules/${path}` : path;
}

function importSource(path) {
  const file = join(HOME, path);
  if (!existsSync(file)) return { error: `${path} was not found` };
  return { contents: readFileSync(file, "utf8") };
}

function render(contracts) {
  const sourceSha256 = sourceDigest();
  return Object.entries(CONTRACTS).map(([name, path]) => {
    const { abi, evm } = contracts[onDisk(path)][name];
    const runtime = evm.deployedBytecode.object;
    if (runtime.length / 2 > LARGEST_RUNTIME) throw new Error(`${name} is ${runtime.length / 2} bytes, above EIP-170`);
    const artifact = {
      contractName: name,
      compiler: solc.version(),
      settings: SETTINGS,
      sourceSha256,
      abi: abi.map(sorted).sort((a, b) => compare(JSON.stringify(a), JSON.stringify(b))),
      bytecode: `0x${evm.bytecode.object}`,
      deployedBytecode: `0x${runtime}`,
      immutables: immutableOffsets(evm.deployedBytecode.immutableReferences ?? {}),
    };
    return [`${name}.json`, `${JSON.stringify(artifact, null, 1)}\n`];
  });
}

/** Where the deployed code differs from `deployedBytecode`: [start, length] of each immutable, ascending. */
function immutableOffsets(references) {
  return Object.values(references)
    .flat()
    .map(({ start, length }) => [start, length])
    .sort((a, b) => a[0] - b[0]);
}

/** One digest over our sources and the lockfile, which pins the compiler and the library by their own digests. */
function sourceDigest() {
  const sources = readdirSync(join(HOME, "src"), { recursive: true })
    .filter((path) => path.endsWith(".sol"))
    .map((path) => `src/${path}`);
  const hash = createHash("sha256");
  for (const path of [...sources, "package-lock.json"].sort(compare)) {
    hash.update(`${path}\0${readFileSync(join(HOME, path), "utf8")}\0`);
  }
  return hash.digest("hex");
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort(compare).map((key) => [key, sorted(value[key])]));
}

function compare(a, b) {
  return a < b ? -1 : a > b ? 1 : 0;
}

function write(files) {
  mkdirSync(TARGET, { recursive: true });
  for (const [name, text] of files) writeFileSync(join(TARGET, name), text);
  process.stdout.write(`${files.length} artifacts written to ${relative(dirname(HOME), TARGET)}\n`);
  return 0;
}

function check(files) {
  const expected = new Map(files);
  const present = existsSync(TARGET) ? readdirSync(TARGET).filter((name) => name.endsWith(".json")) : [];
  const names = [...new Set([...expected.keys(), ...present])].sort(compare);
  const stale = names.filter((name) => !present.includes(name) || readFileSync(join(TARGET, name), "utf8") !== expected.get(name));
  for (const name of stale) process.stdout.write(`${name} is not what the sources compile to: run npm run artifacts\n`);
  return stale.length ? 1 : 0;
}
