// Runs forge's coverage over src and exits 1 below 98 % of lines or 95 % of branches. Gas bounds are left out: counting
// changes what calls cost.

import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const HOME = fileURLToPath(new URL("..", import.meta.url));
const LEAST = { Lines: 98, Branches: 95 };
const OPTIONS = ["coverage", "--report", "summary", "--no-match-coverage", "test/", "--no-match-contract", "GasTest"];

const result = spawnSync(`${HOME}bin/forge`, OPTIONS, { cwd: HOME, encoding: "utf8", stdio: ["ignore", "pipe", "inherit"] });
process.stdout.write(result.stdout);
process.exitCode = result.status === 0 && reaches(result.stdout) ? 0 : 1;

function reaches(report) {
  const row = report.split("\n").find((line) => line.startsWith("| Total"));
  if (!row) return false;
  const [lines, , branches] = [...row.matchAll(/([\d.]+)%/g)].map((match) => Number(match[1]));
  const found = { Lines: lines, Branches: branches };
  return Object.entries(LEAST).every(([name, least]) => {
    if (found[name] < least) process.stdout.write(`${name}: ${found[name]} %, below ${least} %\n`);
    return found[name] >= least;
  });
}
