// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Credits} from "../src/Credits.sol";
import {CreditPool} from "../src/interfaces/ISettlement.sol";
import {Tree} from "./support/Tree.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice Credits: post, replace, veto, activate, lapse, claim.
contract CreditsTest is World {
    /// @dev What one million tokens leave in the pool.
    uint128 internal constant POOL = 0.8e12;

    bytes32 internal pipeline;
    uint64 internal tokens;

    function setUp() public override {
        super.setUp();
        pipeline = settlement.registerPipeline(_adapterPipeline());
        _deposit(10 ether);
        _accrue();
    }

    function test_CreditsComeIntoForceAndArePaid() public {
        (bytes32 root, bytes32[] memory leaves) = _credits(0.5e12, 0.2e12);
        _post(1, root, 0.7e12, POOL);
        vm.expectRevert(Credits.TooEarly.selector);
        credits.activate(node, DATASET);
        vm.warp(block.timestamp + TIMELOCK);
        uint128 before = _sharesOf(DATASET);
        credits.activate(node, DATASET);
        uint128 shares = _sharesOf(DATASET);
        equal(shares - before, 0.1e12, "what was not credited goes to static shares");
        equal(credits.activeOf(node, DATASET).epoch, 1, "in force");
        equal(_claim(leaves, 0, ALICE, 0.5e12), 0.5e12, "alice");
        equal(_claim(leaves, 1, BOB, 0.2e12), 0.2e12, "bob");
        equal(ALICE.balance, 0.5e12, "paid");
        vm.expectRevert(Credits.NothingToPay.selector);
        this.claimExternal(leaves, 0, ALICE, 0.5e12);
        vm.expectRevert(Credits.NothingPending.selector);
        credits.activate(node, DATASET);
    }

    function test_CreditsAreCumulative() public {
        (bytes32 root, bytes32[] memory leaves) = _credits(0.5e12, 0.3e12);
        _postAndActivate(1, root, POOL, POOL);
        _claim(leaves, 0, ALICE, 0.5e12);
        _accrue();
        (root, leaves) = _credits(1.1e12, 0.5e12);
        _postAndActivate(2, root, 2 * POOL, 2 * POOL);
        equal(_claim(leaves, 0, ALICE, 1.1e12), 0.6e12, "the growth");
        equal(_claim(leaves, 1, BOB, 0.5e12), 0.5e12, "both epochs at once");
    }

    function test_OnlyTheNodePosts() public {
        vm.prank(STRANGER);
        vm.expectPartialRevert(Credits.NotNode.selector);
        credits.post(node, DATASET, 1, "root", "leaves", 1, 1);
        vm.prank(OPERATOR);
        credits.post(node, DATASET, 1, "root", "leaves", 1, POOL);
    }

    function test_APostStaysWithinThePool() public {
        vm.startPrank(OPERATOR);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 1, 0, "l", 1, POOL);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 1, "r", "l", 1, POOL + 1);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 1, "r", "l", 0, 0);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 1, "r", "l", POOL / 2 + 1, POOL / 2);
        vm.expectPartialRevert(Credits.BadEpoch.selector);
        credits.post(node, DATASET, 0, "r", "l", 1, POOL);
        vm.expectRevert(Credits.TooLate.selector);
        credits.post(node, PLAIN_DATASET, 1, "r", "l", 0, 0);
        vm.stopPrank();
        _postAndActivate(1, "r", POOL / 2, POOL);
        _accrue();
        vm.startPrank(OPERATOR);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 2, "r", "l", POOL / 2 - 1, 2 * POOL);
        vm.expectPartialRevert(Credits.BadEpoch.selector);
        credits.post(node, DATASET, 1, "r", "l", POOL / 2, 2 * POOL);
        vm.stopPrank();
    }

    function test_AReplacementRestartsTheTimelockAndAfterItIsRefused() public {
        _post(1, "first", POOL, POOL);
        vm.warp(block.timestamp + TIMELOCK - 1);
        vm.prank(OPERATOR);
        vm.expectPartialRevert(Credits.BadEpoch.selector);
        credits.post(node, DATASET, 2, "second", "l", POOL, POOL);
        _post(1, "second", POOL, POOL);
        vm.warp(block.timestamp + 1);
        vm.expectRevert(Credits.TooEarly.selector);
        credits.activate(node, DATASET);
        vm.warp(block.timestamp + TIMELOCK - 1);
        vm.prank(OPERATOR);
        vm.expectRevert(Credits.TooLate.selector);
        credits.post(node, DATASET, 1, "third", "l", POOL, POOL);
        credits.activate(node, DATASET);
        equal(credits.activeOf(node, DATASET).root, "second", "in force");
    }

    function test_ReplacementsCannotStallAPool() public {
        uint256 start = block.timestamp;
        while (block.timestamp + TIMELOCK - 1 <= start + POST_WINDOW) {
            _post(1, "r", POOL, POOL);
            vm.warp(block.timestamp + TIMELOCK - 1);
        }
        _post(1, "r", POOL, POOL);
        vm.warp(block.timestamp + TIMELOCK - 1);
        vm.prank(OPERATOR);
        vm.expectRevert(Credits.TooLate.selector);
        credits.post(node, DATASET, 1, "r", "l", POOL, POOL);
        vm.warp(block.timestamp + 1);
        credits.activate(node, DATASET);
    }

    function test_SmallPostsCannotPutOffOlderIncome() public {
        _postAndActivate(1, "r", 0, 1);
        vm.prank(OPERATOR);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 2, "r", "l", 0, 2);
        _accrue();
        _postAndActivate(2, "r", 0, POOL);
        vm.prank(OPERATOR);
        vm.expectRevert(Credits.BadAmounts.selector);
        credits.post(node, DATASET, 3, "r", "l", 0, POOL + 1);
    }

    function test_AVetoSendsTheAmountToShares() public {
        _post(1, "r", POOL, POOL / 2);
        vm.expectPartialRevert(Credits.NotDatasetOwner.selector);
        credits.veto(node, DATASET);
        uint128 before = _sharesOf(DATASET);
        vm.prank(DATA_OWNER);
        credits.veto(node, DATASET);
        uint128 shares = _sharesOf(DATASET);
        equal(shares - before, POOL / 2, "to static shares");
        vm.prank(DATA_OWNER);
        vm.expectRevert(Credits.NothingPending.selector);
        credits.veto(node, DATASET);
        equal(credits.activeOf(node, DATASET).epoch, 1, "the epoch is over");
    }

    function test_AVetoComesWithinTheTimelock() public {
        _post(1, "r", POOL, POOL);
        vm.warp(block.timestamp + TIMELOCK);
        vm.prank(DATA_OWNER);
        vm.expectRevert(Credits.NothingPending.selector);
        credits.veto(node, DATASET);
    }

    function test_WithoutAPostThePoolLapses() public {
        vm.warp(block.timestamp + POST_WINDOW);
        vm.expectRevert(Credits.TooEarly.selector);
        credits.lapse(node, DATASET);
        vm.warp(block.timestamp + 1);
        vm.prank(OPERATOR);
        vm.expectRevert(Credits.TooLate.selector);
        credits.post(node, DATASET, 1, "r", "l", 1, POOL);
        uint128 before = _sharesOf(DATASET);
        credits.lapse(node, DATASET);
        uint128 shares = _sharesOf(DATASET);
        equal(shares - before, POOL, "to static shares");
        vm.expectRevert(Credits.NothingToPay.selector);
        credits.lapse(node, DATASET);
        vm.warp(block.timestamp + 100 days);
        _accrue();
        vm.expectRevert(Credits.TooEarly.selector);
        credits.lapse(node, DATASET);
        _post(1, "r", POOL, 2 * POOL);
        vm.warp(block.timestamp + POST_WINDOW + 1);
        vm.expectRevert(Credits.TooEarly.selector);
        credits.lapse(node, DATASET);
    }

    function test_OnlyMembersOfTheShareTableEarn() public {
        address[] memory people = new address[](2);
        (people[0], people[1]) = (ALICE, STRANGER);
        uint256[] memory amounts = new uint256[](2);
        (amounts[0], amounts[1]) = (0.1e12, 0.7e12);
        bytes32[] memory leaves = Tree.leavesOf(people, amounts);
        _postAndActivate(1, Tree.root(leaves), POOL, POOL);
        bytes32[] memory credit = Tree.proof(leaves, 1);
        bytes32[] memory share = _shareProof(0);
        vm.expectRevert(Credits.BadProof.selector);
        credits.claim(node, DATASET, STRANGER, 0.7e12, credit, 7_500, share);
        vm.expectRevert(Credits.BadProof.selector);
        credits.claim(node, DATASET, STRANGER, 0.8e12, credit, 7_500, share);
    }

    function test_LeavesAboveTheTotalReachOnlyTheirPool() public {
        (bytes32 root, bytes32[] memory leaves) = _credits(0.6e12, 0.6e12);
        _postAndActivate(1, root, POOL, POOL);
        equal(_claim(leaves, 0, ALICE, 0.6e12), 0.6e12, "first");
        equal(_claim(leaves, 1, BOB, 0.6e12), 0.2e12, "what is left");
        vm.expectRevert();
        this.claimExternal(leaves, 1, BOB, 0.6e12);
        CreditPool memory pool = settlement.creditPool(node, DATASET);
        equal(pool.credited, 0, "the pool is empty");
    }

    function test_TheConstructorNeedsDelays() public {
        vm.expectRevert(Credits.BadParameter.selector);
        new Credits(settlement, nodes, artifacts, 0, 1);
        vm.expectRevert(Credits.BadParameter.selector);
        new Credits(settlement, nodes, artifacts, 1, 0);
        equal(credits.pendingOf(node, DATASET).activatesAt, 0, "nothing pending");
    }

    function claimExternal(bytes32[] memory leaves, uint256 index, address who, uint256 amount) external {
        _claim(leaves, index, who, amount);
    }

    function _accrue() private {
        tokens += 1_000_000;
        _redeem(_voucher(pipeline, tokens, 0));
        _harvest(pipeline);
    }

    function _credits(uint256 alice, uint256 bob) private pure returns (bytes32 root, bytes32[] memory leaves) {
        address[] memory people = new address[](2);
        (people[0], people[1]) = (ALICE, BOB);
        uint256[] memory amounts = new uint256[](2);
        (amounts[0], amounts[1]) = (alice, bob);
        leaves = Tree.leavesOf(people, amounts);
        root = Tree.root(leaves);
    }

    function _post(uint64 epoch, bytes32 root, uint128 total, uint128 through) private {
        vm.prank(vm.addr(NODE_KEY));
        credits.post(node, DATASET, epoch, root, "leaves", total < through ? total : through, through);
    }

    function _postAndActivate(uint64 epoch, bytes32 root, uint128 total, uint128 through) private {
        _post(epoch, root, total, through);
        vm.warp(block.timestamp + TIMELOCK);
        credits.activate(node, DATASET);
    }

    function _claim(bytes32[] memory leaves, uint256 index, address who, uint256 amount) private returns (uint256) {
        return credits.claim(
            node, DATASET, who, amount, Tree.proof(leaves, index), who == ALICE ? 7_500 : 2_500, _shareProof(index)
        );
    }
}
