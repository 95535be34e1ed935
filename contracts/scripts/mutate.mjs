// Shows that the invariants have teeth: seeds one fault at a time into a copy of the contracts, and expects the named
// test to fail. Exits 1 when a fault goes unnoticed, or when its place in the source is gone. Works on a copy only.

import { spawnSync } from "node:child_process";
import { cpSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const HOME = fileURLToPath(new URL("..", import.meta.url));
const COPIED = ["src", "test", "bin", "foundry.toml", "package.json"];

const FAULTS = [
  {
    name: "a redeem books royalties that were not paid",
    caught: "invariant_Solvency",
    edits: [["src/Settlement.sol", "protocol, paid.royalties);\n    }\n\n    function _sum", "protocol, paid.royalties + 1);\n    }\n\n    function _sum"]],
  },
  {
    name: "the protocol's part is not taken out of the operator's",
    caught: "invariant_Solvency",
    edits: [["src/Settlement.sol", "_book(node, pipelineId, paid.compute - protocol,", "_book(node, pipelineId, paid.compute,"]],
  },
  {
    name: "an owner's claim is paid and kept",
    caught: "invariant_ClaimsWithinRedeemed",
    edits: [["src/settlement/Revenue.sol", "        claimable[owner] = 0;\n", ""]],
  },
  {
    name: "a contributor's share is paid again and again",
    caught: "invariant_ClaimsWithinRedeemed",
    edits: [
      ["src/settlement/Revenue.sol", "        paidForLeaf[dataset][leaf] = paid + amount;\n", ""],
      ["src/settlement/Revenue.sol", "        amount = Math.min(total * bps / BPS - paid, total - claimed);", "        amount = total * bps / BPS - paid;"],
    ],
  },
  {
    name: "a channel's compute does not advance, so vouchers pay twice",
    caught: "invariant_CumulativeMonotonic",
    edits: [["src/Settlement.sol", "_channels[id] = Channel(voucher.cumulativeCompute,", "_channels[id] = Channel(channel.compute,"]],
  },
  {
    name: "a voucher of which one amount fell is looked at further",
    caught: "test_ConflictReverts",
    edits: [["src/Settlement.sol", "if (voucher.cumulativeTokens < channel.tokens || voucher.cumulativeCompute < channel.compute) {", "if (voucher.cumulativeTokens < channel.tokens && voucher.cumulativeCompute < channel.compute) {"]],
  },
  {
    name: "a shortfall is forgotten",
    caught: "invariant_CumulativeMonotonic",
    edits: [["src/Settlement.sol", "            _debts[id] = debt;\n            emit DebtChanged(", "            emit DebtChanged("]],
  },
  {
    name: "a collected debt stays owed",
    caught: "invariant_CumulativeMonotonic",
    edits: [["src/Settlement.sol", "        _debts[id] = debt;\n        if (_sum(debt) == 0)", "        if (_sum(debt) == 0)"]],
  },
  {
    name: "redeeming does not reach thawing escrow",
    caught: "invariant_ThawNeverUnderpays",
    edits: [["src/settlement/Escrow.sol", "drawn = amount < a.balance ? amount : a.balance;", "drawn = amount < a.balance - a.thawing ? amount : a.balance - a.thawing;"]],
  },
  {
    name: "escrow leaves without waiting",
    caught: "invariant_ThawNeverUnderpays",
    edits: [["src/settlement/Escrow.sol", "        if (block.timestamp < a.thawEnd) revert StillThawing(a.thawEnd);\n", ""]],
  },
  {
    name: "a payer's escrow is one pot for all nodes",
    caught: "invariant_EscrowIsSeparate",
    edits: [["src/settlement/Escrow.sol", /_accounts\[(payer|msg\.sender)\]\[(node|fromNode|toNode)\]/g, "_accounts[$1][0]"]],
  },
  {
    name: "a move is credited twice",
    caught: "invariant_EscrowIsSeparate",
    edits: [["src/settlement/Escrow.sol", "balance += uint104(amount);\n        emit Moved", "balance += uint104(2 * amount);\n        emit Moved"]],
  },
  {
    name: "credits beyond what a post decides",
    caught: "invariant_CreditsWithinPool",
    edits: [
      ["src/Credits.sol", "        if (totalCredited - active.totalCredited > accruedThrough - pool.settled) revert BadAmounts();\n", ""],
      ["src/Credits.sol", "return through - pool.settled - credited;", "return 0;"],
      ["src/settlement/Revenue.sol", "        if (credited > amount) revert BadSettlement();\n", ""],
      ["src/settlement/Revenue.sol", "if (amount == credited) return;", "if (amount <= credited) return;"],
    ],
  },
  {
    name: "credits are paid without being used up",
    caught: "invariant_CreditsWithinPool",
    edits: [
      ["src/settlement/Revenue.sol", "        pool.credited -= amount;\n", ""],
    ],
  },
  {
    name: "slashing forgets thawing stake",
    caught: "invariant_StakeConserved",
    edits: [["src/NodeRegistry.sol", "        s.thawing -= uint104(fromThawing);\n", ""]],
  },
  {
    name: "a bounty comes on top of the slashed stake",
    caught: "invariant_StakeConserved",
    edits: [["src/NodeRegistry.sol", "claimable[address(0)] += slashed - bounty;", "claimable[address(0)] += slashed;"]],
  },
  {
    name: "anyone redeems",
    caught: "test_APayerCannotVoidWhatItsNodeHolds",
    edits: [["src/Settlement.sol", "if (!NODES.mayActFor(voucher.node, msg.sender)) return (NotPayee.selector, 0);", ""]],
  },
  {
    name: "a batch pays another's node after one's own",
    caught: "test_ABatchPaysTheCallersNodesOnly",
    edits: [["src/Settlement.sol", "voucher.node == 0 || voucher.node != lookup.node", "lookup.node == 0"]],
  },
  {
    name: "any signature of the right form counts",
    caught: "test_StrangersSignatureIsRefused",
    edits: [["src/Settlement.sol", "        if (!maySign(voucher.payer, signer)) return (UnauthorizedSigner.selector, 0);\n", ""]],
  },
  {
    name: "the zero address has signers",
    caught: "test_StrangersSignatureIsRefused",
    edits: [["src/settlement/Signers.sol", "        if (payer == address(0)) return false;\n", ""]],
  },
  {
    name: "superseded terms redeem for ever",
    caught: "test_SupersededTermsRedeemForTheGracePeriod",
    edits: [["src/Settlement.sol", "        if (block.timestamp > lookup.until) return (TermsSuperseded.selector, 0);\n", ""]],
  },
  {
    name: "a batch reuses the look-up of another pipeline",
    caught: "test_ABatchPaysEachPipelineItsOwnRates",
    edits: [["src/Settlement.sol", "if (lookup.pipelineId == pipelineId && lookup.header.partCount != 0) return;", "if (lookup.header.partCount != 0) return;"]],
  },
];

const folder = mkdtempSync(join(tmpdir(), "openlora-mutate-"));
try {
  process.exitCode = run() ? 0 : 1;
} finally {
  rmSync(folder, { recursive: true });
}

function run() {
  for (const name of COPIED) cpSync(join(HOME, name), join(folder, name), { recursive: true });
  symlinkSync(join(HOME, "node_modules"), join(folder, "node_modules"));
  const wanted = process.argv[2];
  const chosen = FAULTS.filter((fault) => !wanted || fault.name.includes(wanted) || fault.caught.includes(wanted));
  const sound = [...new Set(chosen.map((fault) => fault.caught))].join("|");
  if (!passes(`^(${sound})`)) return report("the tests fail without any fault", false);
  return chosen.map((fault) => report(`${fault.name} — ${fault.caught}`, isCaught(fault))).every(Boolean);
}

function isCaught(fault) {
  const files = [...new Set(fault.edits.map(([file]) => file))];
  try {
    for (const [file, find, replacement] of fault.edits) edit(join(folder, file), find, replacement);
    return !passes(`^${fault.caught}`);
  } finally {
    for (const file of files) cpSync(join(HOME, file), join(folder, file));
  }
}

function edit(path, find, replacement) {
  const source = readFileSync(path, "utf8");
  const result = source.replace(find, replacement);
  if (result === source) throw new Error(`${path}: the place of this fault is gone: ${find}`);
  writeFileSync(path, result);
}

/** Whether the tests pass. A build that fails is no result: it throws. Failures kept from the last fault are forgotten. */
function passes(pattern) {
  rmSync(join(folder, "cache", "invariant"), { recursive: true, force: true });
  rmSync(join(folder, "cache", "fuzz"), { recursive: true, force: true });
  const forge = join(HOME, "bin", "forge");
  const result = spawnSync(forge, ["test", "--match-test", pattern, "--no-match-contract", "GasTest|VectorsTest"], { cwd: folder, encoding: "utf8" });
  if (!/\d+ tests? passed/.test(result.stdout)) throw new Error(`forge gave no result:\n${result.stdout}${result.stderr}`);
  return result.status === 0;
}

function report(what, good) {
  process.stdout.write(`${good ? "caught " : "MISSED "} ${what}\n`);
  return good;
}
