// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {TimelockController} from "@openzeppelin/contracts/governance/TimelockController.sol";
import {ArtifactRegistry} from "../../src/ArtifactRegistry.sol";
import {Credits} from "../../src/Credits.sol";
import {NodeRegistry} from "../../src/NodeRegistry.sol";
import {ReceiptAnchor} from "../../src/ReceiptAnchor.sol";
import {Settlement} from "../../src/Settlement.sol";
import {Component, Kind} from "../../src/interfaces/IArtifactRegistry.sol";
import {ISettlement} from "../../src/interfaces/ISettlement.sol";
import {Adapter, Pipeline, Receipt, StructHash, Voucher} from "../../src/lib/Types.sol";
import {MessageHashUtils} from "@openzeppelin/contracts/utils/cryptography/MessageHashUtils.sol";
import {Revenue} from "../../src/settlement/Revenue.sol";
import {Tree} from "./Tree.sol";
import {Assertions, Vm, vm} from "./Vm.sol";

/// @notice Hashes structs that tests hold in memory.
contract Hasher {
    function voucher(Voucher calldata v) external pure returns (bytes32) {
        return StructHash.voucher(v);
    }

    function receipt(Receipt calldata r) external pure returns (bytes32) {
        return StructHash.receipt(r);
    }

    function pipeline(Pipeline calldata p) external pure returns (bytes32) {
        return StructHash.pipeline(p);
    }
}

/// @notice All contracts deployed as in production, with one node, one payer, and artifacts of every kind.
abstract contract World is Assertions {
    uint256 internal constant MIN_STAKE = 1 ether;
    uint48 internal constant STAKE_THAW = 14 days;
    uint48 internal constant ESCROW_THAW = 7 days;
    uint64 internal constant SIGNER_THAW = 2 days;
    uint64 internal constant TERMS_GRACE = 14 days;
    uint64 internal constant TIMELOCK = 3 days;
    uint64 internal constant POST_WINDOW = 14 days;
    uint16 internal constant PROTOCOL_BPS = 500;

    uint256 internal constant PAYER_KEY = 0xA11CE;
    uint256 internal constant SIGNER_KEY = 0x51C;
    uint256 internal constant NODE_KEY = 0x40DE;
    uint256 internal constant OTHER_NODE_KEY = 0x40DF;

    address internal constant OPERATOR = address(0x0E7A70);
    address internal constant PAYOUT = address(0x9A107);
    address internal constant BASE_OWNER = address(0xBA5E);
    address internal constant ADAPTER_OWNER = address(0xADA9);
    address internal constant DATA_OWNER = address(0xDA7A);
    address internal constant ALICE = address(0xA1);
    address internal constant BOB = address(0xB0);
    address internal constant STRANGER = address(0x57A);
    address internal constant TREASURY = address(0x77EA);
    address internal constant GUARDIAN = address(0x60A);

    bytes32 internal constant BASE = keccak256("base");
    bytes32 internal constant DATASET = keccak256("dataset");
    bytes32 internal constant PLAIN_DATASET = keccak256("dataset without a share table");

    uint128 internal constant BASE_RATE = 4e12;
    uint128 internal constant ADAPTER_RATE = 10e12;

    Hasher internal hasher;
    TimelockController internal timelock;
    NodeRegistry internal nodes;
    ArtifactRegistry internal artifacts;
    Settlement internal settlement;
    Credits internal credits;
    ReceiptAnchor internal anchor;

    address internal payer;
    address internal signer;
    bytes32 internal node;
    bytes32 internal adapter;
    bytes32 internal adapter2;
    bytes32[] internal shareLeaves;

    function setUp() public virtual {
        vm.warp(1_764_000_000);
        hasher = new Hasher();
        payer = vm.addr(PAYER_KEY);
        signer = vm.addr(SIGNER_KEY);
        address[] memory governors = new address[](1);
        governors[0] = STRANGER;
        timelock = new TimelockController(2 days, governors, governors, address(0));
        _deploy();
        vm.deal(OPERATOR, 100 ether);
        vm.deal(payer, 10_000 ether);
        node = _registerNode(OPERATOR, NODE_KEY, PAYOUT);
        _registerArtifacts();
    }

    /// @dev The order of deployment: the first two contracts learn the addresses of later ones.
    function _deploy() internal {
        uint64 nonce = vm.getNonce(address(this));
        address settlementAt = vm.computeCreateAddress(address(this), nonce + 2);
        address creditsAt = vm.computeCreateAddress(address(this), nonce + 3);
        address anchorAt = vm.computeCreateAddress(address(this), nonce + 4);
        nodes = new NodeRegistry(settlementAt, anchorAt, MIN_STAKE, STAKE_THAW, 5_000, 2_000);
        artifacts = new ArtifactRegistry(TERMS_GRACE, 60, 1 days);
        settlement = new Settlement(
            address(timelock), TREASURY, GUARDIAN, nodes, artifacts, creditsAt, ESCROW_THAW, SIGNER_THAW, PROTOCOL_BPS
        );
        credits = new Credits(settlement, nodes, artifacts, TIMELOCK, POST_WINDOW);
        anchor = new ReceiptAnchor(address(settlement), nodes);
        equal(address(settlement), settlementAt, "settlement address");
        equal(address(anchor), anchorAt, "anchor address");
    }

    function _registerArtifacts() internal {
        address[] memory people = new address[](2);
        (people[0], people[1]) = (ALICE, BOB);
        uint256[] memory bps = new uint256[](2);
        (bps[0], bps[1]) = (7_500, 2_500);
        shareLeaves = Tree.leavesOf(people, bps);
        (adapter, adapter2) = (keccak256("adapter a"), keccak256("adapter b"));
        if (adapter > adapter2) (adapter, adapter2) = (adapter2, adapter);

        _registerArtifact(BASE_OWNER, BASE, Kind.Base, 0, _terms(BASE_RATE));
        ArtifactRegistry.Terms memory data = _terms(0);
        data.creditsBps = 4_000;
        _registerArtifact(DATA_OWNER, DATASET, Kind.Dataset, Tree.root(shareLeaves), data);
        _registerArtifact(DATA_OWNER, PLAIN_DATASET, Kind.Dataset, 0, _terms(0));
        _registerArtifact(ADAPTER_OWNER, adapter, Kind.Adapter, 0, _adapterTerms(ADAPTER_RATE));
        _registerArtifact(ADAPTER_OWNER, adapter2, Kind.Adapter, 0, _terms(ADAPTER_RATE));
    }

    function _terms(uint128 rate) internal pure returns (ArtifactRegistry.Terms memory terms) {
        terms.rate = rate;
    }

    /// @dev 10 % to the base, 20 % to the dataset with shares, 5 % to the plain one, 65 % to the adapter's owner.
    function _adapterTerms(uint128 rate) internal pure returns (ArtifactRegistry.Terms memory terms) {
        terms.rate = rate;
        terms.components = new Component[](3);
        terms.components[0] = Component(BASE, 1_000);
        terms.components[1] = Component(DATASET, 2_000);
        terms.components[2] = Component(PLAIN_DATASET, 500);
        for (uint256 i; i < 2; ++i) {
            for (uint256 j; j < 2; ++j) {
                if (terms.components[j].artifact > terms.components[j + 1].artifact) {
                    (terms.components[j], terms.components[j + 1]) = (terms.components[j + 1], terms.components[j]);
                }
            }
        }
    }

    function _registerArtifact(
        address owner,
        bytes32 id,
        Kind kind,
        bytes32 sharesRoot,
        ArtifactRegistry.Terms memory terms
    ) internal {
        bytes32 commitment = artifacts.commitmentOf(owner, id, "salt");
        vm.prank(owner);
        artifacts.commit(commitment);
        vm.warp(block.timestamp + 60);
        vm.prank(owner);
        artifacts.register(id, kind, sharesRoot, "ipfs://manifest", terms, "salt");
    }

    function _registerNode(address owner, uint256 key, address recipient) internal returns (bytes32 id) {
        Vm.Wallet memory wallet = vm.createWallet(key);
        bytes32 next = nodes.nextNodeId(owner);
        uint64 deadline = uint64(block.timestamp) + 1 hours;
        bytes memory proof = _sign(key, StructHash.nodeKeyProof(next, owner, deadline));
        vm.deal(owner, owner.balance + MIN_STAKE);
        vm.prank(owner);
        id = nodes.register{value: MIN_STAKE}(
            bytes32(wallet.publicKeyX), bytes32(wallet.publicKeyY), recipient, "https://node.example", deadline, proof
        );
    }

    /// @dev Gives a node of OPERATOR's a key that no node had.
    function _rotateKey(bytes32 id, uint256 key) internal {
        Vm.Wallet memory wallet = vm.createWallet(key);
        uint64 deadline = uint64(block.timestamp) + 1 hours;
        bytes memory proof = _sign(key, StructHash.nodeKeyProof(id, OPERATOR, deadline));
        vm.prank(OPERATOR);
        nodes.rotateKey(id, bytes32(wallet.publicKeyX), bytes32(wallet.publicKeyY), deadline, proof);
    }

    function _authorize(address owner, uint256 key) internal {
        uint64 deadline = uint64(block.timestamp) + 1 hours;
        bytes memory proof = _sign(key, StructHash.signerProof(owner, deadline));
        vm.prank(owner);
        settlement.authorizeSigner(vm.addr(key), deadline, proof);
    }

    function _basePipeline() internal pure returns (Pipeline memory p) {
        p.base = BASE;
        p.baseTermsVersion = 1;
    }

    function _mixPipeline() internal view returns (Pipeline memory p) {
        p = _basePipeline();
        p.adapters = new Adapter[](2);
        p.adapters[0] = Adapter(adapter, 1, 7_000);
        p.adapters[1] = Adapter(adapter2, 1, -3_000);
        p.method = 3;
    }

    function _adapterPipeline() internal view returns (Pipeline memory p) {
        p = _basePipeline();
        p.adapters = new Adapter[](1);
        p.adapters[0] = Adapter(adapter, 1, 10_000);
    }

    function _voucher(bytes32 pipelineId, uint64 tokens, uint128 compute) internal view returns (Voucher memory) {
        return Voucher(payer, node, pipelineId, tokens, compute, keccak256("reference"));
    }

    function _digest(bytes32 structHash) internal view returns (bytes32) {
        bytes32 separator = keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("OpenLoRA"),
                keccak256("1"),
                block.chainid,
                address(settlement)
            )
        );
        return MessageHashUtils.toTypedDataHash(separator, structHash);
    }

    function _sign(uint256 key, bytes32 structHash) internal view returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, _digest(structHash));
        return abi.encodePacked(r, s, v);
    }

    function _signVoucher(uint256 key, Voucher memory v) internal view returns (bytes memory) {
        return _sign(key, hasher.voucher(v));
    }

    function _deposit(uint256 amount) internal {
        vm.prank(payer);
        settlement.deposit{value: amount}(node);
    }

    function _redeem(Voucher memory v) internal returns (uint256 paid) {
        return _present(v, _signVoucher(PAYER_KEY, v));
    }

    /// @dev As the voucher's node redeems it.
    function _present(Voucher memory v, bytes memory s) internal returns (uint256 paid) {
        vm.prank(_keyOf(v.node));
        return settlement.redeem(v, s);
    }

    function _presentMany(Pipeline[] memory fresh, Voucher[] memory vs, bytes[] memory ss)
        internal
        returns (uint256 paid)
    {
        vm.prank(vm.addr(NODE_KEY));
        return settlement.redeemMany(fresh, vs, ss);
    }

    /// @dev The key of one of the two nodes that tests register.
    function _keyOf(bytes32 id) internal view returns (address) {
        return vm.addr(id == node ? NODE_KEY : OTHER_NODE_KEY);
    }

    function _harvest(bytes32 pipelineId) internal {
        Revenue.Source[] memory sources = new Revenue.Source[](1);
        sources[0] = Revenue.Source(node, pipelineId);
        settlement.harvestMany(sources);
    }

    function _sharesOf(bytes32 dataset) internal view returns (uint128 total) {
        (, bytes32 root,) = artifacts.datasetOf(dataset);
        (total,) = settlement.sharePoolOf(dataset, root);
    }

    function _balance() internal view returns (uint256) {
        return settlement.accountOf(payer, node).balance;
    }

    function _shareProof(uint256 index) internal view returns (bytes32[] memory) {
        return Tree.proof(shareLeaves, index);
    }
}
