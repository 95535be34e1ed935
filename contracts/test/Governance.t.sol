// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Settlement} from "../src/Settlement.sol";
import {Payouts} from "../src/settlement/Payouts.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice What governance may change, how late, and how far.
contract GovernanceTest is World {
    function test_AChangeOfTheProtocolsPartWaitsForTheTimelock() public {
        bytes memory call = abi.encodeCall(Settlement.setProtocolBps, (1_000));
        vm.startPrank(STRANGER);
        timelock.schedule(address(settlement), 0, call, 0, 0, 2 days);
        vm.expectRevert();
        timelock.execute(address(settlement), 0, call, 0, 0);
        vm.warp(block.timestamp + 2 days);
        timelock.execute(address(settlement), 0, call, 0, 0);
        vm.stopPrank();
        equal(settlement.protocolBps(), 1_000, "changed");
        vm.prank(address(timelock));
        vm.expectPartialRevert(Settlement.ProtocolBpsTooHigh.selector);
        settlement.setProtocolBps(1_001);
    }

    function test_OnlyTheOwnerGoverns() public {
        vm.expectPartialRevert(Ownable.OwnableUnauthorizedAccount.selector);
        settlement.setProtocolBps(1);
        vm.expectPartialRevert(Ownable.OwnableUnauthorizedAccount.selector);
        settlement.setTreasury(ALICE);
        vm.expectPartialRevert(Ownable.OwnableUnauthorizedAccount.selector);
        settlement.setGuardian(ALICE);
        vm.expectPartialRevert(Settlement.NotGuardian.selector);
        settlement.pause();
        vm.prank(GUARDIAN);
        vm.expectPartialRevert(Ownable.OwnableUnauthorizedAccount.selector);
        settlement.unpause();
    }

    function test_TheOwnerSetsTreasuryAndGuardianAndPauses() public {
        vm.startPrank(address(timelock));
        vm.expectRevert(Payouts.ZeroAddress.selector);
        settlement.setTreasury(address(0));
        settlement.setTreasury(ALICE);
        equal(settlement.treasury(), ALICE, "treasury");
        settlement.setGuardian(BOB);
        equal(settlement.guardian(), BOB, "guardian");
        settlement.pause();
        isTrue(settlement.paused(), "paused");
        settlement.unpause();
        vm.stopPrank();
    }

    function test_OwnershipPassesInTwoSteps() public {
        vm.prank(address(timelock));
        settlement.transferOwnership(ALICE);
        equal(settlement.owner(), address(timelock), "not yet");
        vm.prank(ALICE);
        settlement.acceptOwnership();
        equal(settlement.owner(), ALICE, "accepted");
    }

    function test_TheDomainIsPublished() public view {
        (, string memory name, string memory version, uint256 chainId, address verifyingContract,,) =
            settlement.eip712Domain();
        equal(keccak256(bytes(name)), keccak256("OpenLoRA"), "name");
        equal(keccak256(bytes(version)), keccak256("1"), "version");
        equal(chainId, block.chainid, "chain");
        equal(verifyingContract, address(settlement), "contract");
        equal(nodes.SETTLEMENT(), address(settlement), "the registry's");
        equal(anchor.SETTLEMENT(), address(settlement), "the anchor's");
    }

    function test_ASettlementRefusesARegistryOfAnother() public {
        vm.expectRevert(Settlement.WrongDomain.selector);
        new Settlement(ALICE, TREASURY, GUARDIAN, nodes, artifacts, address(credits), 1, 1, 1);
    }
}
