// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @notice What an artifact is. `Base` and `Adapter` earn royalties of their own; `Dataset` shares in those of others.
enum Kind {
    None,
    Base,
    Adapter,
    Dataset
}

/// @notice A part of an artifact's royalties that goes to another artifact, in basis points.
struct Component {
    bytes32 artifact;
    uint16 bps;
}

/// @title What the other contracts ask of the artifact registry
interface IArtifactRegistry {
    /// @notice The last second at which a terms version redeems; the maximum while it is current.
    /// @dev Version 0 means "unregistered". Reverts for a version that does not exist.
    function acceptedUntil(bytes32 artifact, uint32 version) external view returns (uint64);

    /// @notice Kind of the artifact, rate of a terms version in wei per 1,000,000 tokens, and whether it exists.
    /// @dev Version 0 exists for every artifact and is free.
    function rateOf(bytes32 artifact, uint32 version) external view returns (Kind kind, uint128 rate, bool exists);

    /// @notice Who owns an artifact now, and to which artifacts a terms version passes parts of its royalties.
    function sharingOf(bytes32 artifact, uint32 version)
        external
        view
        returns (address owner, Component[] memory components);

    /// @notice A dataset's owner, its share table's root (zero: all to the owner) and the part assigned to credits.
    function datasetOf(bytes32 artifact) external view returns (address owner, bytes32 sharesRoot, uint16 creditsBps);

    /// @notice Who owns an artifact now; zero while it is unregistered.
    function ownerOf(bytes32 artifact) external view returns (address);

    /// @notice What an artifact is; `None` while it is unregistered.
    function kindOf(bytes32 artifact) external view returns (Kind);
}
