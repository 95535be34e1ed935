// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {IArtifactRegistry, Kind} from "../interfaces/IArtifactRegistry.sol";
import {Adapter, Pipeline, StructHash} from "../lib/Types.sol";

/// @title Pipelines: what their royalties are and who earns them
/// @notice A pipeline's id is the struct hash of its parts, so whoever shows the parts can register it, with one
/// outcome. Royalties after T tokens are floor(T * sum of numerators / (10,000 * 1,000,000)); the base's numerator is its
/// rate * 10,000, an adapter's its rate * min(|weight|, 10,000). No part depends on another: adapters dilute nobody.
abstract contract Pipelines {
    /// @notice A registered pipeline. `partCount` is 0 while it is unknown.
    struct Header {
        uint168 numeratorSum;
        uint8 partCount;
    }

    /// @notice One artifact of a pipeline: base first, then the adapters in order.
    struct Part {
        bytes32 artifact;
        uint32 termsVersion;
        uint168 numerator;
    }

    /// @notice Most adapters of a pipeline.
    uint256 public constant MAX_ADAPTERS = 4;

    /// @notice Weight 1, at and beyond which an adapter earns its whole rate.
    uint256 public constant WEIGHT_ONE = 10_000;

    int256 private constant WEIGHT_QUANTUM = 500;
    uint8 private constant LAST_METHOD = 6;
    uint256 private constant TOKENS_PER_RATE = 1_000_000;

    /// @notice The registry of artifacts.
    IArtifactRegistry public immutable ARTIFACTS;

    mapping(bytes32 pipelineId => Header) private _headers;
    mapping(bytes32 pipelineId => mapping(uint256 index => Part)) private _parts;

    /// @notice A pipeline's parts were shown for the first time.
    event PipelineRegistered(bytes32 indexed pipelineId, Pipeline pipeline);

    /// @notice The pipeline is not in its canonical form.
    error BadPipeline();
    /// @notice The pipeline names terms that do not exist.
    error UnknownTerms();
    /// @notice The base is registered as something else, or an adapter is.
    error WrongKind();
    /// @notice The pipeline was never registered.
    error UnknownPipeline();

    constructor(IArtifactRegistry artifacts) {
        ARTIFACTS = artifacts;
    }

    /// @notice The id of a pipeline: its EIP-712 struct hash.
    function pipelineIdOf(Pipeline calldata pipeline) external pure returns (bytes32) {
        return StructHash.pipeline(pipeline);
    }

    /// @notice A registered pipeline's sums and parts.
    function pipelineOf(bytes32 pipelineId) external view returns (Header memory header, Part[] memory parts) {
        header = _headers[pipelineId];
        parts = _partsOf(pipelineId, header.partCount);
    }

    /// @notice Cumulative royalties of a pipeline after `tokens` tokens, in wei.
    function royaltiesAfter(bytes32 pipelineId, uint64 tokens) external view returns (uint256) {
        Header memory header = _headers[pipelineId];
        if (header.partCount == 0) revert UnknownPipeline();
        return _royalties(header, tokens);
    }

    /// @notice Last second at which vouchers of a pipeline redeem; the maximum while all its terms are current.
    function redeemableUntil(bytes32 pipelineId) external view returns (uint64) {
        uint256 count = _headers[pipelineId].partCount;
        if (count == 0) revert UnknownPipeline();
        return _redeemableUntil(pipelineId, count);
    }

    function _headerOf(bytes32 pipelineId) internal view returns (Header memory) {
        return _headers[pipelineId];
    }

    function _partsOf(bytes32 pipelineId, uint256 count) internal view returns (Part[] memory parts) {
        parts = new Part[](count);
        for (uint256 i; i < count; ++i) {
            parts[i] = _parts[pipelineId][i];
        }
    }

    /// @dev 64 + 113 bits: cannot overflow.
    function _royalties(Header memory header, uint256 tokens) internal pure returns (uint256) {
        return tokens * header.numeratorSum / (WEIGHT_ONE * TOKENS_PER_RATE);
    }

    function _redeemableUntil(bytes32 pipelineId, uint256 count) internal view returns (uint64 until) {
        until = type(uint64).max;
        for (uint256 i; i < count; ++i) {
            Part storage part = _parts[pipelineId][i];
            uint64 partUntil = ARTIFACTS.acceptedUntil(part.artifact, part.termsVersion);
            if (partUntil < until) until = partUntil;
        }
    }

    /// @dev Returns the selector of what is wrong, 0 when the pipeline is registered now or was before.
    function _registerPipeline(Pipeline calldata pipeline) internal returns (bytes4 problem, bytes32 pipelineId) {
        pipelineId = StructHash.pipeline(pipeline);
        if (_headers[pipelineId].partCount != 0) return (0, pipelineId);
        if (!_isCanonical(pipeline)) return (BadPipeline.selector, pipelineId);
        uint256 count = pipeline.adapters.length;
        uint256 numeratorSum;
        Part[] memory parts = new Part[](count + 1);
        for (uint256 i; i < count; ++i) {
            Adapter calldata adapter = pipeline.adapters[i];
            uint256 weight = _counted(adapter.weight);
            (problem, parts[i + 1]) = _partOf(adapter.id, adapter.termsVersion, weight, Kind.Adapter);
            if (problem != 0) return (problem, pipelineId);
            numeratorSum += parts[i + 1].numerator;
        }
        (problem, parts[0]) = _partOf(pipeline.base, pipeline.baseTermsVersion, WEIGHT_ONE, Kind.Base);
        if (problem != 0) return (problem, pipelineId);
        numeratorSum += parts[0].numerator;
        for (uint256 i; i <= count; ++i) {
            _parts[pipelineId][i] = parts[i];
        }
        _headers[pipelineId] = Header(uint168(numeratorSum), uint8(count + 1));
        emit PipelineRegistered(pipelineId, pipeline);
    }

    function _partOf(bytes32 artifact, uint32 version, uint256 weight, Kind expected)
        private
        view
        returns (bytes4 problem, Part memory part)
    {
        (Kind kind, uint128 rate, bool exists) = ARTIFACTS.rateOf(artifact, version);
        if (!exists) return (UnknownTerms.selector, part);
        if (version != 0 && kind != expected) return (WrongKind.selector, part);
        part = Part(artifact, version, uint168(rate * weight));
    }

    /// @dev One canonical form for one choice, as in the protocol: ascending ids, quantised non-zero weights.
    function _isCanonical(Pipeline calldata pipeline) private pure returns (bool) {
        uint256 count = pipeline.adapters.length;
        if (count > MAX_ADAPTERS || pipeline.method > LAST_METHOD) return false;
        if (count < 2 && pipeline.method != 0) return false;
        for (uint256 i; i < count; ++i) {
            Adapter calldata adapter = pipeline.adapters[i];
            if (adapter.weight == 0 || adapter.weight % WEIGHT_QUANTUM != 0) return false;
            if (adapter.id == pipeline.base) return false;
            if (i != 0 && adapter.id <= pipeline.adapters[i - 1].id) return false;
        }
        return true;
    }

    function _counted(int256 weight) private pure returns (uint256) {
        uint256 magnitude = uint256(weight < 0 ? -weight : weight);
        return magnitude < WEIGHT_ONE ? magnitude : WEIGHT_ONE;
    }
}
