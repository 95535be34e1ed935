// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReceiptAnchor} from "../src/ReceiptAnchor.sol";
import {Leaf} from "../src/lib/Leaf.sol";
import {Receipt, StructHash} from "../src/lib/Types.sol";
import {Tree} from "./support/Tree.sol";
import {World} from "./support/World.sol";
import {Vm, vm} from "./support/Vm.sol";

/// @notice Anchors, and equivocation.
contract ReceiptAnchorTest is World {
    function test_AnEpochHasOneRoot() public {
        ReceiptAnchor.Totals memory t = _totals();
        vm.prank(STRANGER);
        vm.expectPartialRevert(ReceiptAnchor.NotNode.selector);
        anchor.anchor(node, 7, "root", t);
        vm.startPrank(vm.addr(NODE_KEY));
        anchor.anchor(node, 7, "root", t);
        equal(anchor.rootOf(node, 7), "root", "anchored");
        vm.expectPartialRevert(ReceiptAnchor.AlreadyAnchored.selector);
        anchor.anchor(node, 7, "other", t);
        anchor.anchor(node, 6, "gaps and any order are allowed", t);
        vm.stopPrank();
        vm.prank(OPERATOR);
        anchor.anchor(node, 8, "by the owner", t);
    }

    function test_AnAnchorMakesSense() public {
        ReceiptAnchor.Totals memory t = _totals();
        vm.startPrank(OPERATOR);
        vm.expectRevert(ReceiptAnchor.BadAnchor.selector);
        anchor.anchor(node, 7, 0, t);
        t.count = 0;
        vm.expectRevert(ReceiptAnchor.BadAnchor.selector);
        anchor.anchor(node, 7, "r", t);
        t = _totals();
        t.lastSeq = t.firstSeq - 1;
        vm.expectRevert(ReceiptAnchor.BadAnchor.selector);
        anchor.anchor(node, 7, "r", t);
        t = _totals();
        t.count = 12;
        vm.expectRevert(ReceiptAnchor.BadAnchor.selector);
        anchor.anchor(node, 7, "r", t);
        t.count = 11;
        anchor.anchor(node, 7, "r", t);
        vm.stopPrank();
    }

    function test_AnAnchoredReceiptIsProvable() public {
        bytes32[] memory leaves = new bytes32[](3);
        for (uint64 i; i < 3; ++i) {
            leaves[i] = Leaf.receipt("salt", anchor.receiptDigest(_receipt(i, 0)));
        }
        vm.prank(OPERATOR);
        anchor.anchor(node, 1, Tree.root(leaves), _totals());
        bytes32 digest = anchor.receiptDigest(_receipt(2, 0));
        isTrue(anchor.isAnchored(node, 1, "salt", digest, Tree.proof(leaves, 2)), "proved");
        isTrue(!anchor.isAnchored(node, 1, "pepper", digest, Tree.proof(leaves, 2)), "other salt");
        isTrue(!anchor.isAnchored(node, 2, "salt", digest, Tree.proof(leaves, 2)), "other epoch");
    }

    function test_TwoStoriesOfOneNumberAreSlashed() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        (Receipt memory b, bytes memory sb) = _signed(NODE_KEY, 5, 2);
        vm.prank(ALICE);
        equal(anchor.challengeEquivocation(a, sa, b, sb), 0.1 ether, "a fifth of half the stake");
        equal(nodes.nodeOf(node).stake.staked, 0.5 ether, "slashed");
        isTrue(anchor.isProven(node, 5), "proven");
        vm.expectPartialRevert(ReceiptAnchor.AlreadyProven.selector);
        anchor.challengeEquivocation(b, sb, a, sa);
        (a, sa) = _signed(NODE_KEY, 6, 1);
        (b, sb) = _signed(NODE_KEY, 6, 2);
        anchor.challengeEquivocation(a, sa, b, sb);
        equal(nodes.nodeOf(node).stake.staked, 0.25 ether, "another number counts again");
    }

    function test_WhatIsNoEquivocation() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        (Receipt memory b, bytes memory sb) = _signed(NODE_KEY, 6, 2);
        vm.expectRevert(ReceiptAnchor.NoEquivocation.selector);
        anchor.challengeEquivocation(a, sa, a, sa);
        vm.expectRevert(ReceiptAnchor.NoEquivocation.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
        bytes32 other = _registerNode(OPERATOR, OTHER_NODE_KEY, PAYOUT);
        b = _receipt(5, 1);
        b.node = other;
        sb = _sign(OTHER_NODE_KEY, hasher.receipt(b));
        vm.expectRevert(ReceiptAnchor.NoEquivocation.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
        (b, sb) = _signed(OTHER_NODE_KEY, 5, 2);
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(b, sb, a, sa);
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(a, sa, b, hex"00");
    }

    function test_AKeyAnswersForItsTimeOnly() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        Receipt memory b = _receipt(5, 2);
        b.finishedAt = nodes.keyOf(vm.addr(NODE_KEY)).validFrom - 1;
        bytes memory sb = _sign(NODE_KEY, hasher.receipt(b));
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
        _rotate(0x99);
        b.finishedAt = uint64(block.timestamp);
        sb = _sign(0x99, hasher.receipt(b));
        anchor.challengeEquivocation(a, sa, b, sb);
    }

    function test_ARetiredKeyIsJudgedForTheThaw() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        (Receipt memory b, bytes memory sb) = _signed(NODE_KEY, 5, 2);
        _rotate(0x99);
        vm.warp(block.timestamp + STAKE_THAW + 1);
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
    }

    function test_DeregisteringDoesNotEscape() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        (Receipt memory b, bytes memory sb) = _signed(NODE_KEY, 5, 2);
        vm.startPrank(OPERATOR);
        nodes.deregister(node);
        vm.warp(block.timestamp + STAKE_THAW);
        anchor.challengeEquivocation(a, sa, b, sb);
        nodes.withdrawStake(node);
        vm.stopPrank();
        equal(OPERATOR.balance, 100 ether + 0.5 ether, "half of the thawing stake was taken");
    }

    function test_ReceiptsOfAnotherChainProveNothing() public {
        (Receipt memory a, bytes memory sa) = _signed(NODE_KEY, 5, 1);
        (Receipt memory b, bytes memory sb) = _signed(NODE_KEY, 5, 2);
        vm.chainId(1612);
        vm.expectPartialRevert(ReceiptAnchor.BadReceiptSignature.selector);
        anchor.challengeEquivocation(a, sa, b, sb);
        (a, sa) = _signed(NODE_KEY, 5, 1);
        (b, sb) = _signed(NODE_KEY, 5, 2);
        anchor.challengeEquivocation(a, sa, b, sb);
    }

    function _rotate(uint256 key) private {
        Vm.Wallet memory w = vm.createWallet(key);
        uint64 deadline = uint64(block.timestamp) + 1;
        bytes memory proof = _sign(key, StructHash.nodeKeyProof(node, OPERATOR, deadline));
        vm.prank(OPERATOR);
        nodes.rotateKey(node, bytes32(w.publicKeyX), bytes32(w.publicKeyY), deadline, proof);
    }

    function _signed(uint256 key, uint64 seq, uint128 compute) private view returns (Receipt memory r, bytes memory) {
        r = _receipt(seq, compute);
        return (r, _sign(key, hasher.receipt(r)));
    }

    function _receipt(uint64 seq, uint128 compute) private view returns (Receipt memory r) {
        r.payer = payer;
        r.node = node;
        r.seq = seq;
        r.compute = compute;
        r.startedAt = uint64(block.timestamp);
        r.finishedAt = uint64(block.timestamp);
    }

    function _totals() private pure returns (ReceiptAnchor.Totals memory) {
        return ReceiptAnchor.Totals(3, 10, 20, 100, 200, 300);
    }
}
