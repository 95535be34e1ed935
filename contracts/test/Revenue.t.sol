// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ArtifactRegistry} from "../src/ArtifactRegistry.sol";
import {Component, Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {CreditPool} from "../src/interfaces/ISettlement.sol";
import {Payouts} from "../src/settlement/Payouts.sol";
import {Revenue} from "../src/settlement/Revenue.sol";
import {Pipeline} from "../src/lib/Types.sol";
import {Leaf} from "../src/lib/Leaf.sol";
import {Tree} from "./support/Tree.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice What was redeemed, until everyone took their part.
contract RevenueTest is World {
    bytes32 internal pipeline;

    function setUp() public override {
        super.setUp();
        pipeline = settlement.registerPipeline(_adapterPipeline());
        _deposit(10 ether);
    }

    /// @dev The worked example of docs/contracts.md.
    function test_OneMillionTokensToTheWei() public {
        equal(_redeem(_voucher(pipeline, 1_000_000, 400e12)), 414e12, "compute 400, base 4, adapter 10");
        _harvest(pipeline);
        // adapter's 10e12: 10 % to the base, 20 % to the dataset (40 % of that by use), 5 % to the plain dataset
        equal(settlement.claimable(BASE_OWNER), 5e12, "4 of its own and 1 of the adapter's");
        equal(settlement.claimable(DATA_OWNER), 0.5e12, "the plain dataset's owner");
        equal(settlement.claimable(ADAPTER_OWNER), 6.5e12, "the rest");
        equal(settlement.creditPool(node, DATASET).accrued, 0.8e12, "by use");
        uint128 total = _sharesOf(DATASET);
        equal(total, 1.2e12, "static shares");
        settlement.claimOperator(node);
        equal(PAYOUT.balance, 380e12, "operator");
        settlement.claimOwner(BASE_OWNER);
        equal(BASE_OWNER.balance, 5e12, "base owner");
        equal(settlement.claimShare(DATASET, ALICE, 7_500, _shareProof(0)), 0.9e12, "alice");
        equal(settlement.claimShare(DATASET, BOB, 2_500, _shareProof(1)), 0.3e12, "bob");
        bytes32[] memory list = new bytes32[](2);
        (list[0], list[1]) = (keccak256("none"), node);
        equal(settlement.claimProtocol(list), 20e12, "protocol");
        equal(TREASURY.balance, 20e12, "treasury");
    }

    function testFuzz_HarvestingOftenOrOnceDividesTheSame(uint32 a, uint32 b, uint32 c) public {
        uint64[3] memory steps = [uint64(a), uint64(a) + b, uint64(a) + b + c];
        bytes32 other = settlement.registerPipeline(_mixPipeline());
        for (uint256 i; i < 3; ++i) {
            _redeem(_voucher(other, steps[i], 0));
            _harvest(other);
        }
        uint256 total = settlement.royaltiesAfter(other, steps[2]);
        uint256 sum = uint256(BASE_RATE) * 10_000 + uint256(ADAPTER_RATE) * 10_000;
        uint256 second = total * (uint256(ADAPTER_RATE) * 3_000) / sum;
        uint256 got = settlement.claimable(ADAPTER_OWNER) + settlement.claimable(BASE_OWNER)
            + settlement.claimable(DATA_OWNER) + settlement.creditPool(node, DATASET).accrued;
        uint128 shares = _sharesOf(DATASET);
        got += shares;
        isTrue(got <= total && got + 3 > total, "all but dust is divided");
        isTrue(settlement.claimable(ADAPTER_OWNER) >= second, "the second adapter's part is whole");
    }

    function test_UnharvestedRoyaltiesFollowTheArtifact() public {
        _redeem(_voucher(pipeline, 1_000_000, 0));
        _harvest(pipeline);
        _redeem(_voucher(pipeline, 2_000_000, 0));
        vm.prank(ADAPTER_OWNER);
        artifacts.transferOwnership(adapter, ALICE);
        vm.prank(ALICE);
        artifacts.acceptOwnership(adapter);
        _harvest(pipeline);
        equal(settlement.claimable(ADAPTER_OWNER), 6.5e12, "harvested before: stays");
        equal(settlement.claimable(ALICE), 6.5e12, "harvested after: follows");
    }

    function test_ComponentsAreThoseOfTheVersionThatThePipelineNames() public {
        _redeem(_voucher(pipeline, 1_000_000, 0));
        vm.prank(ADAPTER_OWNER);
        artifacts.setTerms(adapter, _terms(1));
        _harvest(pipeline);
        equal(settlement.claimable(ADAPTER_OWNER), 6.5e12, "new terms take nothing from datasets");
    }

    function test_HarvestingNothingIsNoError() public {
        _harvest(pipeline);
        _harvest(keccak256("none"));
        _redeem(_voucher(pipeline, 1, 0));
        _harvest(pipeline);
        _harvest(pipeline);
    }

    function test_ComponentsTooSmallToDivideGoToTheOwner() public {
        _redeem(_voucher(pipeline, 1, 0));
        _harvest(pipeline);
        uint256 before = settlement.claimable(ADAPTER_OWNER);
        equal(before, 6_500_000, "one token");
        ArtifactRegistry.Terms memory t = _terms(1e6);
        t.components = new Component[](1);
        t.components[0] = Component(DATASET, 1);
        bytes32 tiny = keccak256("tiny");
        _registerArtifact(ADAPTER_OWNER, tiny, Kind.Adapter, 0, t);
        bytes32 id = _single(tiny);
        _redeem(_voucher(id, 1, 0));
        _harvest(id);
        equal(settlement.claimable(ADAPTER_OWNER), before + 1, "1 wei cannot be divided");
    }

    function test_AWholeArtifactMayPassOnItsIncome() public {
        ArtifactRegistry.Terms memory t = _terms(1e12);
        t.components = new Component[](1);
        t.components[0] = Component(DATASET, 10_000);
        bytes32 charity = keccak256("charity");
        _registerArtifact(STRANGER, charity, Kind.Adapter, 0, t);
        bytes32 id = _single(charity);
        _redeem(_voucher(id, 1_000_000, 0));
        _harvest(id);
        equal(settlement.claimable(STRANGER), 0, "the owner kept nothing");
        uint128 shares = _sharesOf(DATASET);
        equal(settlement.creditPool(node, DATASET).accrued + shares, 1e12, "the dataset has all");
    }

    function test_AllByUseOrAllByShares() public {
        vm.prank(DATA_OWNER);
        ArtifactRegistry.Terms memory t = _terms(0);
        t.creditsBps = 10_000;
        artifacts.setTerms(DATASET, t);
        _redeem(_voucher(pipeline, 1_000_000, 0));
        _harvest(pipeline);
        equal(settlement.creditPool(node, DATASET).accrued, 2e12, "by use");
        vm.prank(DATA_OWNER);
        artifacts.setTerms(DATASET, _terms(0));
        _redeem(_voucher(pipeline, 2_000_000, 0));
        _harvest(pipeline);
        uint128 shares = _sharesOf(DATASET);
        equal(shares, 2e12, "by shares");
        equal(settlement.creditPool(node, DATASET).accrued, 2e12, "unchanged");
    }

    function test_SharesGrowAndAreNeverPaidTwice() public {
        _redeem(_voucher(pipeline, 1_000_000, 0));
        _harvest(pipeline);
        settlement.claimShare(DATASET, ALICE, 7_500, _shareProof(0));
        bytes32[] memory proof = _shareProof(0);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.claimShare(DATASET, ALICE, 7_500, proof);
        vm.expectRevert(Revenue.BadProof.selector);
        settlement.claimShare(DATASET, ALICE, 7_501, proof);
        vm.expectRevert(Revenue.BadProof.selector);
        settlement.claimShare(DATASET, BOB, 7_500, proof);
        vm.expectRevert(Revenue.BadProof.selector);
        settlement.claimShare(keccak256("none"), ALICE, 7_500, proof);
        _redeem(_voucher(pipeline, 3_000_000, 0));
        _harvest(pipeline);
        equal(settlement.claimShare(DATASET, ALICE, 7_500, proof), 1.8e12, "the growth");
        equal(settlement.paidForLeaf(DATASET, Leaf.amount(ALICE, 7_500)), 2.7e12, "in all");
    }

    function test_ATableAboveTheWholeCannotReachOtherMoney() public {
        address[] memory people = new address[](2);
        (people[0], people[1]) = (ALICE, BOB);
        uint256[] memory bps = new uint256[](2);
        (bps[0], bps[1]) = (9_000, 9_000);
        bytes32[] memory leaves = Tree.leavesOf(people, bps);
        bytes32 greedy = keccak256("greedy dataset");
        _registerArtifact(DATA_OWNER, greedy, Kind.Dataset, Tree.root(leaves), _terms(0));
        ArtifactRegistry.Terms memory t = _terms(1e12);
        t.components = new Component[](1);
        t.components[0] = Component(greedy, 10_000);
        bytes32 id = keccak256("greedy adapter");
        _registerArtifact(ADAPTER_OWNER, id, Kind.Adapter, 0, t);
        id = _single(id);
        _redeem(_voucher(id, 1_000_000, 0));
        _harvest(id);
        equal(settlement.claimShare(greedy, ALICE, 9_000, Tree.proof(leaves, 0)), 0.9e12, "first");
        equal(settlement.claimShare(greedy, BOB, 9_000, Tree.proof(leaves, 1)), 0.1e12, "what is left");
        bytes32[] memory proof = Tree.proof(leaves, 1);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.claimShare(greedy, BOB, 9_000, proof);
    }

    function test_ClaimsPayTheRecipientWhoeverCalls() public {
        _redeem(_voucher(pipeline, 1_000_000, 100));
        _harvest(pipeline);
        vm.prank(ALICE);
        settlement.setRecipient(address(0xA11A5));
        vm.prank(STRANGER);
        settlement.claimShare(DATASET, ALICE, 7_500, _shareProof(0));
        equal(address(0xA11A5).balance, 0.9e12, "alice's recipient");
        vm.prank(STRANGER);
        settlement.claimOperator(node);
        equal(PAYOUT.balance, 95, "the node's recipient");
        equal(STRANGER.balance, 0, "the caller has nothing of it");
    }

    function test_NothingToClaim() public {
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.claimOperator(node);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.claimOwner(BASE_OWNER);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.claimProtocol(new bytes32[](1));
    }

    function test_OnlyTheCreditsContractDecidesPools() public {
        vm.expectPartialRevert(Revenue.NotCredits.selector);
        settlement.settleCredits(node, DATASET, 1, 0);
        vm.expectPartialRevert(Revenue.NotCredits.selector);
        settlement.payCredits(node, DATASET, ALICE, 1);
    }

    function test_EvenTheCreditsContractStaysWithinThePool() public {
        _redeem(_voucher(pipeline, 1_000_000, 0));
        _harvest(pipeline);
        uint128 all = settlement.creditPool(node, DATASET).accrued;
        vm.startPrank(address(credits));
        vm.expectRevert(Revenue.BadSettlement.selector);
        settlement.settleCredits(node, DATASET, all + 1, 0);
        vm.expectRevert(Revenue.BadSettlement.selector);
        settlement.settleCredits(node, DATASET, 0, 0);
        vm.expectRevert(Revenue.BadSettlement.selector);
        settlement.settleCredits(node, DATASET, all, all + 1);
        settlement.settleCredits(node, DATASET, all, all);
        vm.expectRevert(Revenue.BadSettlement.selector);
        settlement.settleCredits(node, DATASET, all, 0);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.payCredits(node, DATASET, ALICE, all + 1);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.payCredits(node, DATASET, ALICE, 0);
        settlement.payCredits(node, DATASET, ALICE, all);
        vm.stopPrank();
        equal(ALICE.balance, all, "paid");
        CreditPool memory pool = settlement.creditPool(node, DATASET);
        equal(pool.credited, 0, "nothing left");
    }

    function _single(bytes32 id) private returns (bytes32) {
        Pipeline memory p = _adapterPipeline();
        p.base = keccak256("free base");
        p.baseTermsVersion = 0;
        p.adapters[0].id = id;
        return settlement.registerPipeline(p);
    }
}
