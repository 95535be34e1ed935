// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessPolicies} from "./AccessPolicies.sol";
import {Component, IArtifactRegistry, Kind} from "./interfaces/IArtifactRegistry.sol";

/// @title Base models, adapters and datasets: who owns them and on which terms they are used
/// @notice An artifact is known by the digest of its manifest. Its terms are numbered and never change; new terms are a
/// new version, and the old one still redeems for the grace period. Its share table is fixed for good: other shares
/// are another manifest, hence another id. An unregistered artifact is public and free (version 0).
contract ArtifactRegistry is IArtifactRegistry, AccessPolicies {
    /// @notice An artifact. `sharesRoot` is the Merkle root over (contributor, basis points), datasets only.
    struct Artifact {
        address owner;
        Kind kind;
        uint32 latestVersion;
        address pendingOwner;
        bytes32 sharesRoot;
    }

    /// @notice What a new version of an artifact's terms says.
    /// @param rate Wei per 1,000,000 tokens, at most MAX_RATE; 0 for a dataset.
    /// @param creditsBps Part of a dataset's income assigned to credits by use; 0 for the other kinds.
    /// @param components Parts of the royalties passed on: base to datasets, adapter to datasets and to one base.
    struct Terms {
        uint128 rate;
        uint16 creditsBps;
        Component[] components;
    }

    /// @notice A stored version of terms.
    struct Version {
        uint128 rate;
        uint64 createdAt;
        uint16 creditsBps;
        uint8 componentCount;
    }

    uint256 private constant BPS = 10_000;

    /// @notice Largest rate: keeps every product of a pipeline's shares within 256 bits.
    uint256 public constant MAX_RATE = type(uint96).max;

    /// @notice Most artifacts to which one passes parts of its royalties.
    uint256 public constant MAX_COMPONENTS = 8;

    /// @notice How long superseded terms still redeem, in seconds.
    uint64 public immutable TERMS_GRACE;

    /// @notice How old a commitment must be before it is revealed, in seconds.
    uint64 public immutable MIN_COMMIT_AGE;

    /// @notice How old a commitment may be when it is revealed, in seconds.
    uint64 public immutable MAX_COMMIT_AGE;

    /// @notice When `account` made a commitment; 0 without one.
    mapping(address account => mapping(bytes32 commitment => uint64)) public committedAt;

    mapping(bytes32 artifact => Artifact) private _artifacts;
    mapping(bytes32 artifact => mapping(uint32 version => Version)) private _versions;
    mapping(bytes32 artifact => mapping(uint32 version => mapping(uint256 index => Component))) private _components;
    mapping(bytes32 artifact => string) private _metadata;

    /// @notice Someone committed to register an artifact.
    event Committed(address indexed account, bytes32 indexed commitment);
    /// @notice An artifact was registered. Its first terms follow in `TermsChanged`.
    event ArtifactRegistered(
        bytes32 indexed artifact, Kind indexed kind, address indexed owner, bytes32 sharesRoot, string metadata
    );
    /// @notice New terms; the version before redeems until now + `TERMS_GRACE`.
    event TermsChanged(
        bytes32 indexed artifact, uint32 indexed version, uint128 rate, uint16 creditsBps, Component[] components
    );
    /// @notice The metadata is found elsewhere.
    event MetadataChanged(bytes32 indexed artifact, string metadata);
    /// @notice A transfer was offered; the zero address withdraws the offer.
    event OwnerOffered(bytes32 indexed artifact, address indexed owner, address indexed pendingOwner);
    /// @notice A transfer was accepted. What was not harvested follows the artifact.
    event OwnerChanged(bytes32 indexed artifact, address indexed oldOwner, address indexed newOwner);

    /// @notice The artifact was registered already.
    error AlreadyRegistered(bytes32 artifact);
    /// @notice No artifact was registered under this id.
    error UnknownArtifact(bytes32 artifact);
    /// @notice The artifact has no terms of this version.
    error UnknownTerms(bytes32 artifact, uint32 version);
    /// @notice Commit first, and reveal within the allowed age.
    error BadCommitment(uint64 committedAt);
    /// @notice Terms outside what their artifact's kind allows.
    error BadTerms();
    /// @notice A component is of a kind that this artifact cannot pass royalties to, or stands twice.
    error BadComponent(bytes32 artifact);
    /// @notice Only the account that was offered the artifact may accept it.
    error NotPendingOwner(bytes32 artifact, address caller);
    /// @notice A registration needs a kind, a non-zero id, and no share table unless it is a dataset.
    error BadRegistration();
    /// @notice A constructor argument is outside its bounds.
    error BadParameter();

    /// @param termsGrace How long superseded terms still redeem, in seconds.
    /// @param minCommitAge Youngest commitment that can be revealed, in seconds.
    /// @param maxCommitAge Oldest commitment that can be revealed, in seconds.
    constructor(uint64 termsGrace, uint64 minCommitAge, uint64 maxCommitAge) {
        if (minCommitAge == 0 || maxCommitAge <= minCommitAge) revert BadParameter();
        TERMS_GRACE = termsGrace;
        MIN_COMMIT_AGE = minCommitAge;
        MAX_COMMIT_AGE = maxCommitAge;
    }

    /// @notice Commits to a registration without showing the id, so that nobody can run ahead with it.
    /// @param commitment `commitmentOf(caller, artifact, salt)`.
    function commit(bytes32 commitment) external {
        committedAt[msg.sender][commitment] = uint64(block.timestamp);
        emit Committed(msg.sender, commitment);
    }

    /// @notice Registers an artifact of the caller and its first terms.
    /// @param artifact Digest of the manifest.
    /// @param kind What it is.
    /// @param sharesRoot Root of a dataset's share table; zero pays everything to the owner.
    /// @param metadata Where the manifest is found.
    /// @param terms Version 1 of the terms.
    /// @param salt The secret of the commitment.
    function register(
        bytes32 artifact,
        Kind kind,
        bytes32 sharesRoot,
        string calldata metadata,
        Terms calldata terms,
        bytes32 salt
    ) external {
        _consumeCommitment(commitmentOf(msg.sender, artifact, salt));
        Artifact storage a = _artifacts[artifact];
        if (a.owner != address(0)) revert AlreadyRegistered(artifact);
        if (artifact == 0 || kind == Kind.None || (sharesRoot != 0 && kind != Kind.Dataset)) revert BadRegistration();
        a.owner = msg.sender;
        a.kind = kind;
        a.sharesRoot = sharesRoot;
        _metadata[artifact] = metadata;
        emit ArtifactRegistered(artifact, kind, msg.sender, sharesRoot, metadata);
        _addTerms(artifact, a, terms);
    }

    /// @notice Sets new terms. Pipelines that name the version before redeem for the grace period.
    /// @return version The new version's number.
    function setTerms(bytes32 artifact, Terms calldata terms)
        external
        onlyArtifactOwner(artifact)
        returns (uint32 version)
    {
        return _addTerms(artifact, _artifacts[artifact], terms);
    }

    /// @notice Says where the manifest is found.
    function setMetadata(bytes32 artifact, string calldata metadata) external onlyArtifactOwner(artifact) {
        _metadata[artifact] = metadata;
        emit MetadataChanged(artifact, metadata);
    }

    /// @notice Offers the artifact to another account. Offering it to the zero address withdraws the offer.
    function transferOwnership(bytes32 artifact, address pendingOwner) external onlyArtifactOwner(artifact) {
        _artifacts[artifact].pendingOwner = pendingOwner;
        emit OwnerOffered(artifact, msg.sender, pendingOwner);
    }

    /// @notice Takes an artifact that was offered, with all royalties that were not harvested yet.
    function acceptOwnership(bytes32 artifact) external {
        Artifact storage a = _artifacts[artifact];
        if (msg.sender != a.pendingOwner) revert NotPendingOwner(artifact, msg.sender);
        address oldOwner = a.owner;
        a.owner = msg.sender;
        a.pendingOwner = address(0);
        emit OwnerChanged(artifact, oldOwner, msg.sender);
    }

    /// @notice The commitment to a registration.
    function commitmentOf(address owner, bytes32 artifact, bytes32 salt) public pure returns (bytes32) {
        return keccak256(abi.encode(owner, artifact, salt));
    }

    /// @notice Everything known of an artifact; empty while it is unregistered.
    function artifactOf(bytes32 artifact) external view returns (Artifact memory) {
        return _artifacts[artifact];
    }

    /// @notice Where the manifest is found.
    function metadataOf(bytes32 artifact) external view returns (string memory) {
        return _metadata[artifact];
    }

    /// @notice One version of an artifact's terms, from 1.
    function termsOf(bytes32 artifact, uint32 version) external view returns (Version memory, Component[] memory) {
        if (version == 0) revert UnknownTerms(artifact, version);
        return (_existing(artifact, version), _componentsOf(artifact, version));
    }

    /// @inheritdoc IArtifactRegistry
    function acceptedUntil(bytes32 artifact, uint32 version) external view returns (uint64) {
        uint32 latest = _artifacts[artifact].latestVersion;
        if (version == latest) return type(uint64).max;
        if (version > latest) revert UnknownTerms(artifact, version);
        return _versions[artifact][version + 1].createdAt + TERMS_GRACE;
    }

    /// @inheritdoc IArtifactRegistry
    function rateOf(bytes32 artifact, uint32 version) external view returns (Kind kind, uint128 rate, bool exists) {
        Artifact storage a = _artifacts[artifact];
        return (a.kind, _versions[artifact][version].rate, version <= a.latestVersion);
    }

    /// @inheritdoc IArtifactRegistry
    function sharingOf(bytes32 artifact, uint32 version)
        external
        view
        returns (address owner, Component[] memory components)
    {
        return (_artifacts[artifact].owner, _componentsOf(artifact, version));
    }

    /// @inheritdoc IArtifactRegistry
    function datasetOf(bytes32 artifact) external view returns (address owner, bytes32 sharesRoot, uint16 creditsBps) {
        Artifact storage a = _artifacts[artifact];
        return (a.owner, a.sharesRoot, _versions[artifact][a.latestVersion].creditsBps);
    }

    /// @inheritdoc IArtifactRegistry
    function ownerOf(bytes32 artifact) external view returns (address) {
        return _artifacts[artifact].owner;
    }

    /// @inheritdoc IArtifactRegistry
    function kindOf(bytes32 artifact) external view returns (Kind) {
        return _artifacts[artifact].kind;
    }

    function _consumeCommitment(bytes32 commitment) private {
        uint64 since = committedAt[msg.sender][commitment];
        if (since == 0 || block.timestamp < since + MIN_COMMIT_AGE || block.timestamp > since + MAX_COMMIT_AGE) {
            revert BadCommitment(since);
        }
        delete committedAt[msg.sender][commitment];
    }

    function _addTerms(bytes32 artifact, Artifact storage a, Terms calldata terms) private returns (uint32 version) {
        Kind kind = a.kind;
        bool dataset = kind == Kind.Dataset;
        uint256 count = terms.components.length;
        if (count > MAX_COMPONENTS || terms.creditsBps > BPS || terms.rate > MAX_RATE) revert BadTerms();
        if (dataset && (terms.rate != 0 || count != 0)) revert BadTerms();
        // Without a share table nobody but the owner shares in a dataset, so there is nobody to credit.
        if (terms.creditsBps != 0 && (!dataset || a.sharesRoot == 0)) revert BadTerms();
        version = ++a.latestVersion;
        _versions[artifact][version] = Version(terms.rate, uint64(block.timestamp), terms.creditsBps, uint8(count));
        _storeComponents(artifact, version, kind, terms.components);
        emit TermsChanged(artifact, version, terms.rate, terms.creditsBps, terms.components);
    }

    /// @dev Components stand in ascending order of their ids, each once; their kinds end every chain after one step.
    function _storeComponents(bytes32 artifact, uint32 version, Kind kind, Component[] calldata components) private {
        uint256 total;
        bool hasBase;
        bytes32 previous;
        for (uint256 i; i < components.length; ++i) {
            Component calldata c = components[i];
            Kind part = _artifacts[c.artifact].kind;
            bool isBase = part == Kind.Base && kind == Kind.Adapter && !hasBase;
            if ((!isBase && part != Kind.Dataset) || c.artifact <= previous || c.bps == 0) {
                revert BadComponent(c.artifact);
            }
            hasBase = hasBase || isBase;
            previous = c.artifact;
            total += c.bps;
            _components[artifact][version][i] = c;
        }
        if (total > BPS) revert BadTerms();
    }

    function _existing(bytes32 artifact, uint32 version) private view returns (Version memory) {
        if (version > _artifacts[artifact].latestVersion) revert UnknownTerms(artifact, version);
        return _versions[artifact][version];
    }

    function _componentsOf(bytes32 artifact, uint32 version) private view returns (Component[] memory components) {
        uint256 count = _existing(artifact, version).componentCount;
        components = new Component[](count);
        for (uint256 i; i < count; ++i) {
            components[i] = _components[artifact][version][i];
        }
    }

    function _ownerOf(bytes32 artifact) internal view override returns (address) {
        return _artifacts[artifact].owner;
    }
}
