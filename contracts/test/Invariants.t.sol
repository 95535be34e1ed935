// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Handler} from "./support/Handler.sol";
import {Assertions} from "./support/Vm.sol";

/// @notice What holds after any sequence of calls by anyone. scripts/mutate.mjs shows that each of them can fail.
contract InvariantsTest is Assertions {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    Handler internal handler;

    function setUp() public {
        handler = new Handler();
    }

    function targetContracts() external view returns (address[] memory list) {
        list = new address[](1);
        list[0] = address(handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory list) {
        list = new FuzzSelector[](1);
        list[0] = FuzzSelector(address(handler), handler.actions());
    }

    /// @notice The settlement holds what it owes, to the wei.
    function invariant_Solvency() external view {
        (uint256 held,) = handler.balances();
        equal(held, handler.escrowed() + handler.unclaimed(), "balance, escrow and what is unclaimed");
    }

    /// @notice Channels only grow, and what they say beyond what was paid is their debt: no claim is lost or doubled.
    function invariant_CumulativeMonotonic() external view {
        isTrue(handler.channelsAgree(), "channels are their newest vouchers, debts the unpaid rest");
    }

    /// @notice Claims and what can still be claimed are what vouchers brought in: nobody draws more than that.
    function invariant_ClaimsWithinRedeemed() external view {
        equal(handler.claimed() + handler.unclaimed(), handler.redeemed(), "claimed, unclaimed and redeemed");
    }

    /// @notice A thaw takes nothing from vouchers redeemed before its end; money leaves only after it.
    function invariant_ThawNeverUnderpays() external view {
        equal(bytes(handler.broken()).length, 0, handler.broken());
    }

    /// @notice Each (payer, node) escrow is what went in less what came out of it: no node reaches another's.
    function invariant_EscrowIsSeparate() external view {
        isTrue(handler.escrowAgrees(), "every escrow is its model's");
    }

    /// @notice Credits come out of what their pool accrued and was decided, never out of other money.
    function invariant_CreditsWithinPool() external view {
        isTrue(handler.creditsAreCovered(), "credits within the pool");
    }

    /// @notice Stake is in the registry or was paid out: slashing and thawing make and lose none.
    function invariant_StakeConserved() external view {
        (, uint256 held) = handler.balances();
        equal(held, handler.stakeObligations(), "balance and stakes");
        equal(held + handler.stakeOut(), handler.stakeIn(), "in and out");
    }
}
