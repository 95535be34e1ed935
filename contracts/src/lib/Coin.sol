// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title Sends the native coin
library Coin {
    /// @notice The recipient refused the payment, or is a contract that cannot take it.
    error PaymentRefused(address recipient);

    /// @notice Sends `amount` wei; what the recipient returns is not copied, so it cannot make the caller pay for it.
    function send(address recipient, uint256 amount) internal {
        bool done;
        assembly ("memory-safe") {
            done := call(gas(), recipient, amount, 0, 0, 0, 0)
        }
        if (!done) revert PaymentRefused(recipient);
    }
}
