// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReentrancyGuard} from "@openzeppelin/contracts/utils/ReentrancyGuard.sol";
import {Coin} from "./lib/Coin.sol";

/// @notice The two doors of an artifact: which payers may use it, which nodes may hold its weights.
enum Scope {
    Use,
    Host
}

/// @notice Who passes a door: everyone, the listed, or the listed and holders of a bought licence.
enum Mode {
    Public,
    AllowList,
    Licence
}

/// @title Who may use an artifact and who may host it
/// @notice Judged by nodes when a request arrives; redeeming never asks. A subject is a payer's address in 32 bytes for
/// `Use`, a node id for `Host`. What a licence costs goes to the artifact's owner at the moment of the sale.
abstract contract AccessPolicies is ReentrancyGuard {
    /// @notice A door's rule. Price in wei and duration in seconds concern licences only.
    struct Policy {
        Mode mode;
        uint48 duration;
        uint128 price;
    }

    /// @notice Wei that anyone may send to the account with `claim`.
    mapping(address account => uint256) public claimable;

    mapping(bytes32 artifact => mapping(Scope => Policy)) private _policies;
    mapping(bytes32 artifact => mapping(Scope => mapping(bytes32 subject => bool))) private _listed;
    mapping(bytes32 artifact => mapping(Scope => mapping(bytes32 subject => uint64))) private _licensedUntil;

    /// @notice A door has a new rule; lists and licences that were granted stay.
    event PolicyChanged(bytes32 indexed artifact, Scope indexed scope, Mode mode, uint128 price, uint48 duration);
    /// @notice A subject was put on a door's list or taken off it.
    event ListingChanged(bytes32 indexed artifact, Scope indexed scope, bytes32 indexed subject, bool listed);
    /// @notice A licence was bought or prolonged.
    event LicenceBought(
        bytes32 indexed artifact,
        Scope indexed scope,
        bytes32 indexed subject,
        address buyer,
        address owner,
        uint256 price,
        uint64 until
    );
    /// @notice Someone may claim more: a sale's price, or the change of a purchase.
    event Credited(address indexed account, uint256 amount);
    /// @notice What an account could claim was paid to it.
    event Claimed(address indexed account, uint256 amount);

    /// @notice Only the artifact's owner may do this.
    error NotArtifactOwner(bytes32 artifact, address caller);
    /// @notice This door has no licences to sell.
    error NotForSale(bytes32 artifact, Scope scope);
    /// @notice The price is above what the caller accepts or sent.
    error PriceTooHigh(uint256 price, uint256 accepted);
    /// @notice A licence lasts shorter than the caller accepts.
    error DurationTooShort(uint48 duration, uint48 accepted);
    /// @notice A licence lasts at least a second; other modes have neither price nor duration.
    error BadPolicy();
    /// @notice There is nothing to claim.
    error NothingToClaim(address account);

    modifier onlyArtifactOwner(bytes32 artifact) {
        if (msg.sender != _ownerOf(artifact)) revert NotArtifactOwner(artifact, msg.sender);
        _;
    }

    /// @notice Changes a door's rule.
    /// @param price Wei of one licence; 0 unless `mode` is `Licence`.
    /// @param duration Seconds that one licence lasts; 0 unless `mode` is `Licence`.
    function setPolicy(bytes32 artifact, Scope scope, Mode mode, uint128 price, uint48 duration)
        external
        onlyArtifactOwner(artifact)
    {
        bool licence = mode == Mode.Licence;
        if (licence ? duration == 0 : price != 0 || duration != 0) revert BadPolicy();
        _policies[artifact][scope] = Policy(mode, duration, price);
        emit PolicyChanged(artifact, scope, mode, price, duration);
    }

    /// @notice Puts subjects on a door's list or takes them off it.
    function setListed(bytes32 artifact, Scope scope, bytes32[] calldata subjects, bool listed)
        external
        onlyArtifactOwner(artifact)
    {
        for (uint256 i; i < subjects.length; ++i) {
            _listed[artifact][scope][subjects[i]] = listed;
            emit ListingChanged(artifact, scope, subjects[i], listed);
        }
    }

    /// @notice Buys a licence for `subject`, or prolongs it. Wei sent beyond the price can be claimed back.
    /// @param maxPrice The highest price that the caller accepts.
    /// @param minDuration The shortest duration that the caller accepts, in seconds.
    /// @return until Last second of the licence.
    function buy(bytes32 artifact, Scope scope, bytes32 subject, uint256 maxPrice, uint48 minDuration)
        external
        payable
        returns (uint64 until)
    {
        Policy memory policy = _policies[artifact][scope];
        if (policy.mode != Mode.Licence) revert NotForSale(artifact, scope);
        if (policy.duration < minDuration) revert DurationTooShort(policy.duration, minDuration);
        uint256 price = policy.price;
        if (price > maxPrice || price > msg.value) {
            revert PriceTooHigh(price, maxPrice < msg.value ? maxPrice : msg.value);
        }
        uint64 from = _licensedUntil[artifact][scope][subject];
        if (from < block.timestamp) from = uint64(block.timestamp);
        until = from + policy.duration;
        _licensedUntil[artifact][scope][subject] = until;
        address owner = _ownerOf(artifact);
        emit LicenceBought(artifact, scope, subject, msg.sender, owner, price, until);
        _credit(owner, price);
        _credit(msg.sender, msg.value - price);
    }

    /// @notice Sends what `account` may claim to it. Anyone may call it.
    function claim(address account) external nonReentrant returns (uint256 amount) {
        amount = claimable[account];
        if (amount == 0) revert NothingToClaim(account);
        claimable[account] = 0;
        emit Claimed(account, amount);
        Coin.send(account, amount);
    }

    /// @notice A door's rule.
    function policyOf(bytes32 artifact, Scope scope) external view returns (Policy memory) {
        return _policies[artifact][scope];
    }

    /// @notice Last second of a subject's licence; 0 without one.
    function licensedUntil(bytes32 artifact, Scope scope, bytes32 subject) external view returns (uint64) {
        return _licensedUntil[artifact][scope][subject];
    }

    /// @notice Whether a subject stands on a door's list.
    function isListed(bytes32 artifact, Scope scope, bytes32 subject) external view returns (bool) {
        return _listed[artifact][scope][subject];
    }

    /// @notice Whether a subject passes a door now. Unregistered artifacts are public; owners may use what is theirs.
    function hasAccess(bytes32 artifact, Scope scope, bytes32 subject) external view returns (bool) {
        Mode mode = _policies[artifact][scope].mode;
        if (mode == Mode.Public || _listed[artifact][scope][subject]) return true;
        if (scope == Scope.Use && subject == bytes32(uint256(uint160(_ownerOf(artifact))))) return true;
        return mode == Mode.Licence && _licensedUntil[artifact][scope][subject] >= block.timestamp;
    }

    function _credit(address account, uint256 amount) private {
        if (amount == 0) return;
        claimable[account] += amount;
        emit Credited(account, amount);
    }

    function _ownerOf(bytes32 artifact) internal view virtual returns (address);
}
