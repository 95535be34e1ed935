// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ReceiptAnchor} from "../src/ReceiptAnchor.sol";
import {Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {ArtifactRegistry} from "../src/ArtifactRegistry.sol";
import {Component} from "../src/interfaces/IArtifactRegistry.sol";
import {Pipeline, Voucher} from "../src/lib/Types.sol";
import {Tree} from "./support/Tree.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

interface VmGas {
    struct Gas {
        uint64 gasLimit;
        uint64 gasTotalUsed;
        uint64 gasMemoryUsed;
        int64 gasRefunded;
        uint64 gasRemaining;
    }

    function lastCallGas() external view returns (Gas memory);
}

/// @notice What whole transactions cost, each on its own (isolated): execution, 21,000, calldata. Bounds are promises.
/// forge-config: default.isolate = true
contract GasTest is World {
    uint256 private constant PAYERS = 100;

    /// @notice EIP-7825: most gas of one transaction.
    uint256 private constant TRANSACTION_CAP = 16_777_216;

    /// @notice Most vouchers that a caller puts into one batch; docs/contracts.md names it.
    uint256 private constant MAX_BATCH = 256;

    bytes32 internal pipeline;

    function setUp() public override {
        super.setUp();
        pipeline = settlement.registerPipeline(_adapterPipeline());
    }

    /// @dev The first voucher of a new node, payer and pipeline, less what registering the pipeline costs on top.
    function test_FirstRedeemEver() public {
        _deposit(1 ether);
        Pipeline[] memory fresh = new Pipeline[](1);
        fresh[0] = _mixPipeline();
        Voucher[] memory vs = new Voucher[](1);
        bytes[] memory ss = new bytes[](1);
        vs[0] = _voucher(settlement.pipelineIdOf(fresh[0]), 1_000, 1e15);
        ss[0] = _signVoucher(PAYER_KEY, vs[0]);
        _presentMany(fresh, vs, ss);
        uint256 both = _spent();
        fresh[0].method = 4;
        settlement.registerPipeline(fresh[0]);
        _within("first redeem, pipeline registration apart", both - (_spent() - 21_000), 130_000);
    }

    /// @dev The same where the pipeline was registered in an earlier transaction: its terms are read from cold storage.
    function test_FirstRedeemOfAKnownPipeline() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(pipeline, 1_000, 1e15);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        _present(v, s);
        _within("first redeem of a known pipeline", _spent(), 145_000);
        v = _voucher(pipeline, 2_000, 2e15);
        s = _signVoucher(PAYER_KEY, v);
        _present(v, s);
        _within("repeat redeem", _spent(), 95_000);
    }

    function test_BatchOfAHundredPayers() public {
        _fund(PAYERS);
        _batch(PAYERS, 1, "batch of 100 payers, first, per voucher", 70_000);
        _batch(PAYERS, 2, "batch of 100 payers, repeat, per voucher", 42_000);
    }

    function test_TheLargestBatchFitsATransaction() public {
        _fund(MAX_BATCH);
        uint256 each = _batch(MAX_BATCH, 1, "batch of 256 payers, first, per voucher", 65_000);
        _within("batch of 256 payers, first, in all", each * MAX_BATCH, TRANSACTION_CAP);
    }

    function test_PipelineRegistration() public {
        Pipeline memory p = _mixPipeline();
        settlement.registerPipeline(p);
        _within("register a pipeline of two adapters", _spent(), 260_000);
    }

    function test_AContributorsRepeatClaimFromAThousand() public {
        address[] memory people = new address[](1_000);
        uint256[] memory bps = new uint256[](1_000);
        for (uint256 i; i < 1_000; ++i) {
            (people[i], bps[i]) = (address(uint160(uint256(keccak256(abi.encode(i))))), 10);
        }
        bytes32[] memory leaves = Tree.leavesOf(people, bps);
        bytes32 dataset = keccak256("a thousand contributors");
        _registerArtifact(DATA_OWNER, dataset, Kind.Dataset, Tree.root(leaves), _terms(0));
        ArtifactRegistry.Terms memory t = _terms(ADAPTER_RATE);
        t.components = new Component[](1);
        t.components[0] = Component(dataset, 10_000);
        bytes32 id = keccak256("their adapter");
        _registerArtifact(ADAPTER_OWNER, id, Kind.Adapter, 0, t);
        Pipeline memory p = _adapterPipeline();
        p.adapters[0].id = id;
        id = settlement.registerPipeline(p);
        _deposit(1 ether);
        bytes32[] memory proof = Tree.proof(leaves, 500);
        _redeem(_voucher(id, 1_000_000, 0));
        _harvest(id);
        settlement.claimShare(dataset, people[500], 10, proof);
        _redeem(_voucher(id, 2_000_000, 0));
        _harvest(id);
        settlement.claimShare(dataset, people[500], 10, proof);
        _within("contributor's repeat claim from 1,000 leaves", _spent(), 60_000);
    }

    function test_Anchor() public {
        ReceiptAnchor.Totals memory t = ReceiptAnchor.Totals(1_000, 1 << 50, (1 << 50) + 1_000, 1e6, 1e18, 1e16);
        bytes32 root = keccak256("root");
        vm.prank(vm.addr(NODE_KEY));
        anchor.anchor(node, 500_000, root, t);
        _within("anchor", _spent(), 60_000);
    }

    function _fund(uint256 payers) private {
        for (uint256 i; i < payers; ++i) {
            vm.deal(vm.addr(i + 1), 1 ether);
            vm.prank(vm.addr(i + 1));
            settlement.deposit{value: 1 ether}(node);
        }
    }

    function _batch(uint256 size, uint64 step, string memory name, uint256 limit) private returns (uint256 each) {
        Pipeline[] memory none = new Pipeline[](0);
        Voucher[] memory vs = new Voucher[](size);
        bytes[] memory ss = new bytes[](size);
        for (uint256 i; i < size; ++i) {
            vs[i] = _voucher(pipeline, step * 1_000_000, step * 1e15);
            vs[i].payer = vm.addr(i + 1);
            vs[i].referenceDigest = keccak256(abi.encode(i, step));
            ss[i] = _signVoucher(i + 1, vs[i]);
        }
        _presentMany(none, vs, ss);
        each = _spent() / size;
        _within(name, each, limit);
    }

    /// @dev Of the transaction just made, as its receipt says it.
    function _spent() private view returns (uint256) {
        return VmGas(address(vm)).lastCallGas().gasTotalUsed;
    }

    function _within(string memory name, uint256 spent, uint256 limit) private {
        vm.snapshotValue(name, spent);
        if (spent > limit) revert NotEqual(name, spent, limit);
    }
}
