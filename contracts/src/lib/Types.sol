// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The structs that wallets and nodes sign, with their EIP-712 type hashes
/// @notice Byte-equal to the protocol's published vectors. A struct hash knows no domain: the same bytes everywhere.

/// @notice Payer to node: everything that this signer owes for this pipeline so far. The newest replaces all before it.
struct Voucher {
    address payer;
    bytes32 node;
    bytes32 pipelineId;
    uint64 cumulativeTokens;
    uint128 cumulativeCompute;
    bytes32 referenceDigest;
}

/// @notice Node to payer: what was run and what it cost.
struct Receipt {
    bytes32 requestDigest;
    address payer;
    bytes32 node;
    bytes32 pipelineId;
    uint8 status;
    bytes32 engineDigest;
    uint64 promptTokens;
    uint64 completionTokens;
    bytes32 outputHash;
    bytes32 attributionRoot;
    bytes32 commitmentRoot;
    uint128 compute;
    uint128 royalties;
    uint64 startedAt;
    uint64 finishedAt;
    uint64 seq;
    bytes32 previous;
}

/// @notice One adapter of a pipeline. The weight counts ten-thousandths and is signed.
struct Adapter {
    bytes32 id;
    uint32 termsVersion;
    int32 weight;
}

/// @notice One base, at most four adapters in ascending id order, and how they are mixed.
struct Pipeline {
    bytes32 base;
    uint32 baseTermsVersion;
    Adapter[] adapters;
    uint8 method;
}

/// @notice Struct hashes of the signed types.
library StructHash {
    bytes32 internal constant VOUCHER_TYPEHASH = keccak256(
        "Voucher(address payer,bytes32 node,bytes32 pipelineId,uint64 cumulativeTokens,uint128 cumulativeCompute,bytes32 referenceDigest)"
    );
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256(
        "Receipt(bytes32 requestDigest,address payer,bytes32 node,bytes32 pipelineId,uint8 status,bytes32 engineDigest,uint64 promptTokens,uint64 completionTokens,bytes32 outputHash,bytes32 attributionRoot,bytes32 commitmentRoot,uint128 compute,uint128 royalties,uint64 startedAt,uint64 finishedAt,uint64 seq,bytes32 previous)"
    );
    bytes32 internal constant ADAPTER_TYPEHASH = keccak256("Adapter(bytes32 id,uint32 termsVersion,int32 weight)");
    bytes32 internal constant PIPELINE_TYPEHASH = keccak256(
        "Pipeline(bytes32 base,uint32 baseTermsVersion,Adapter[] adapters,uint8 method)Adapter(bytes32 id,uint32 termsVersion,int32 weight)"
    );
    bytes32 internal constant SIGNER_PROOF_TYPEHASH = keccak256("SignerProof(address payer,uint64 deadline)");
    bytes32 internal constant NODE_KEY_PROOF_TYPEHASH =
        keccak256("NodeKeyProof(bytes32 node,address owner,uint64 deadline)");

    /// @notice hashStruct of a voucher.
    function voucher(Voucher calldata v) internal pure returns (bytes32) {
        return keccak256(abi.encode(VOUCHER_TYPEHASH, v));
    }

    /// @notice hashStruct of a receipt.
    function receipt(Receipt calldata r) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, r));
    }

    /// @notice hashStruct of a pipeline: its id.
    function pipeline(Pipeline calldata p) internal pure returns (bytes32) {
        uint256 count = p.adapters.length;
        bytes32[] memory hashes = new bytes32[](count);
        for (uint256 i; i < count; ++i) {
            hashes[i] = keccak256(abi.encode(ADAPTER_TYPEHASH, p.adapters[i]));
        }
        return keccak256(
            abi.encode(PIPELINE_TYPEHASH, p.base, p.baseTermsVersion, keccak256(abi.encodePacked(hashes)), p.method)
        );
    }

    /// @notice hashStruct of a signer's proof that it agrees to sign for `payer`.
    function signerProof(address payer, uint64 deadline) internal pure returns (bytes32) {
        return keccak256(abi.encode(SIGNER_PROOF_TYPEHASH, payer, deadline));
    }

    /// @notice hashStruct of a node key's proof that it agrees to serve `node` of `owner`.
    function nodeKeyProof(bytes32 node, address owner, uint64 deadline) internal pure returns (bytes32) {
        return keccak256(abi.encode(NODE_KEY_PROOF_TYPEHASH, node, owner, deadline));
    }
}
