// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {Coin} from "../lib/Coin.sol";

/// @title Where the settlement pays an account
/// @notice Anyone may call a claim, because contributors hold no gas; it always pays the beneficiary's recipient.
abstract contract Payouts is ReentrancyGuard {
    mapping(address account => address) private _recipients;

    /// @notice What is due to `account` goes to `recipient` from now on.
    event RecipientChanged(address indexed account, address indexed recipient);

    /// @notice There is nothing to pay.
    error NothingToPay();
    /// @notice The zero address owns and receives nothing.
    error ZeroAddress();

    /// @notice Has everything due to the caller paid to `recipient`; the zero address restores the caller itself.
    function setRecipient(address recipient) external {
        _recipients[msg.sender] = recipient;
        emit RecipientChanged(msg.sender, recipientOf(msg.sender));
    }

    /// @notice Who receives what is due to `account`: itself unless it named another.
    function recipientOf(address account) public view returns (address) {
        address recipient = _recipients[account];
        return recipient == address(0) ? account : recipient;
    }

    /// @dev The last step of every payment: all state is written before it.
    function _pay(address account, uint256 amount) internal {
        Coin.send(recipientOf(account), amount);
    }
}
