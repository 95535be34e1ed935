// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Pausable} from "@openzeppelin/contracts/utils/Pausable.sol";
import {Escrow} from "../src/settlement/Escrow.sol";
import {Payouts} from "../src/settlement/Payouts.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice Escrow: in, thaw, out, across.
contract EscrowTest is World {
    function test_DepositsOfAnyoneReachThePayersEscrow() public {
        _deposit(5);
        vm.deal(STRANGER, 10);
        vm.prank(STRANGER);
        settlement.depositFor{value: 10}(payer, node);
        equal(_balance(), 15, "both");
        vm.expectRevert(Payouts.ZeroAddress.selector);
        settlement.depositFor{value: 1}(address(0), node);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.deposit(node);
        vm.expectPartialRevert(Escrow.NodeNotRegistered.selector);
        settlement.deposit{value: 1}(keccak256("none"));
        vm.prank(OPERATOR);
        nodes.deregister(node);
        vm.expectPartialRevert(Escrow.NodeNotRegistered.selector);
        settlement.deposit{value: 1}(node);
    }

    function test_WeiSentWithoutADepositIsRefused() public {
        (bool done,) = address(settlement).call{value: 1}("");
        isTrue(!done, "no receive function");
    }

    function test_ADepositBeyondTheLedgersWidthIsRefused() public {
        vm.deal(payer, type(uint128).max);
        vm.prank(payer);
        vm.expectRevert();
        settlement.deposit{value: uint256(type(uint104).max) + 1}(node);
    }

    function test_MoneyLeavesAfterTheThawOnly() public {
        _deposit(100);
        vm.startPrank(payer);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.thaw(node, 0);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.thaw(node, 101);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.withdraw(node);
        settlement.thaw(node, 60);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.thaw(node, 41);
        vm.warp(block.timestamp + ESCROW_THAW - 1);
        vm.expectPartialRevert(Escrow.StillThawing.selector);
        settlement.withdraw(node);
        settlement.thaw(node, 1);
        vm.warp(block.timestamp + 1);
        vm.expectPartialRevert(Escrow.StillThawing.selector);
        settlement.withdraw(node);
        vm.warp(block.timestamp + ESCROW_THAW - 1);
        uint256 before = payer.balance;
        equal(settlement.withdraw(node), 61, "both amounts after the later end");
        equal(payer.balance - before, 61, "paid");
        equal(_balance(), 39, "the rest stays");
        vm.stopPrank();
    }

    function test_AThawIsCalledOff() public {
        _deposit(100);
        vm.startPrank(payer);
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.cancelThaw(node);
        settlement.thaw(node, 60);
        settlement.cancelThaw(node);
        vm.warp(block.timestamp + ESCROW_THAW);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.withdraw(node);
        vm.stopPrank();
        equal(_balance(), 100, "all stays");
    }

    function test_ThawedMoneyMovesToAnotherNode() public {
        bytes32 other = _registerNode(OPERATOR, OTHER_NODE_KEY, PAYOUT);
        _deposit(100);
        vm.startPrank(payer);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.move(node, other, 1);
        settlement.thaw(node, 60);
        vm.expectPartialRevert(Escrow.StillThawing.selector);
        settlement.move(node, other, 60);
        vm.warp(block.timestamp + ESCROW_THAW);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.move(node, other, 61);
        vm.expectPartialRevert(Escrow.BadAmount.selector);
        settlement.move(node, other, 0);
        vm.expectPartialRevert(Escrow.NodeNotRegistered.selector);
        settlement.move(node, keccak256("none"), 60);
        settlement.move(node, other, 50);
        equal(settlement.accountOf(payer, other).balance, 50, "arrived");
        equal(settlement.accountOf(payer, other).thawing, 0, "and does not thaw");
        equal(settlement.withdraw(node), 10, "the rest of what thawed");
        equal(_balance(), 40, "never thawed");
        settlement.thaw(node, 40);
        vm.warp(block.timestamp + ESCROW_THAW);
        settlement.move(node, node, 40);
        equal(_balance(), 40, "a move onto itself makes nothing");
        vm.stopPrank();
    }

    function test_WithdrawalsGoToTheNamedRecipient() public {
        _deposit(100);
        vm.startPrank(payer);
        settlement.setRecipient(ALICE);
        settlement.thaw(node, 100);
        vm.warp(block.timestamp + ESCROW_THAW);
        settlement.withdraw(node);
        equal(ALICE.balance, 100, "named");
        settlement.setRecipient(address(0));
        equal(settlement.recipientOf(payer), payer, "itself again");
        vm.stopPrank();
    }

    function test_APauseStopsDepositsAndMovesAndNothingElse() public {
        bytes32 pipeline = settlement.registerPipeline(_basePipeline());
        _deposit(1_000);
        vm.prank(payer);
        settlement.thaw(node, 100);
        vm.prank(GUARDIAN);
        settlement.pause();
        vm.warp(block.timestamp + ESCROW_THAW);
        vm.startPrank(payer);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        settlement.deposit{value: 1}(node);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        settlement.depositFor{value: 1}(payer, node);
        vm.expectRevert(Pausable.EnforcedPause.selector);
        settlement.move(node, node, 1);
        settlement.withdraw(node);
        settlement.thaw(node, 1);
        settlement.cancelThaw(node);
        vm.stopPrank();
        equal(_redeem(_voucher(pipeline, 0, 200)), 200, "redeems");
        settlement.claimOperator(node);
        bytes32[] memory list = new bytes32[](1);
        list[0] = node;
        settlement.claimProtocol(list);
        vm.prank(address(timelock));
        settlement.unpause();
        _deposit(1);
    }
}
