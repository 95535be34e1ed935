// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {StructHash} from "../lib/Types.sol";

/// @title Who may sign vouchers for a payer
/// @notice The payer itself, or a key that it authorised. Only ECDSA counts: a payer's code may change (EIP-7702), so a
/// voucher that depended on it could become void after it was earned. A contract wallet authorises a key instead.
abstract contract Signers is EIP712 {
    /// @notice Whom a key signs for, for ever, and when that ends (0: no end).
    struct Authorization {
        address payer;
        uint64 endsAt;
    }

    /// @notice How long a revoked signer's vouchers still redeem, in seconds.
    uint64 public immutable SIGNER_THAW;

    mapping(address signer => Authorization) private _authorizations;

    /// @notice A key signs for a payer from now on.
    event SignerAuthorized(address indexed payer, address indexed signer);
    /// @notice A key stops signing for its payer at `endsAt`.
    event SignerThawing(address indexed payer, address indexed signer, uint64 endsAt);

    /// @notice A key belongs to one payer for ever.
    error SignerTaken(address signer, address payer);
    /// @notice The proof is not by the signer, or for another payer, chain or contract.
    error BadSignerProof(address expected);
    /// @notice The proof's deadline passed.
    error ProofExpired(uint64 deadline);
    /// @notice The key does not sign for the caller.
    error NotYourSigner(address signer);

    constructor(uint64 signerThaw) {
        SIGNER_THAW = signerThaw;
    }

    /// @notice Lets a key sign the caller's vouchers. Also calls off its revocation, or renews it after one.
    /// @param deadline Last second at which the proof counts.
    /// @param proof The key's signature over SignerProof(caller, deadline): it agrees to belong to the caller.
    function authorizeSigner(address signer, uint64 deadline, bytes calldata proof) external {
        if (block.timestamp > deadline) revert ProofExpired(deadline);
        address owner = _authorizations[signer].payer;
        if (owner != address(0) && owner != msg.sender) revert SignerTaken(signer, owner);
        bytes32 digest = _hashTypedDataV4(StructHash.signerProof(msg.sender, deadline));
        (address by, ECDSA.RecoverError problem,) = ECDSA.tryRecoverCalldata(digest, proof);
        if (problem != ECDSA.RecoverError.NoError || by != signer) revert BadSignerProof(signer);
        _authorizations[signer] = Authorization(msg.sender, 0);
        emit SignerAuthorized(msg.sender, signer);
    }

    /// @notice Revokes a key: its vouchers redeem for the thaw period more. A second call changes nothing.
    function thawSigner(address signer) external {
        Authorization storage a = _authorizations[signer];
        if (a.payer != msg.sender) revert NotYourSigner(signer);
        if (a.endsAt != 0) return;
        a.endsAt = uint64(block.timestamp) + SIGNER_THAW;
        emit SignerThawing(msg.sender, signer, a.endsAt);
    }

    /// @notice Whom a key signs for and when that ends.
    function authorizationOf(address signer) external view returns (Authorization memory) {
        return _authorizations[signer];
    }

    /// @notice Whether a voucher of `payer` that `signer` signed counts now.
    function maySign(address payer, address signer) public view returns (bool) {
        if (payer == address(0)) return false;
        if (signer == payer) return true;
        Authorization memory a = _authorizations[signer];
        return a.payer == payer && (a.endsAt == 0 || block.timestamp < a.endsAt);
    }
}
