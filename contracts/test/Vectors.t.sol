// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {MerkleProof} from "@openzeppelin/contracts/utils/cryptography/MerkleProof.sol";
import {Settlement} from "../src/Settlement.sol";
import {Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {Leaf} from "../src/lib/Leaf.sol";
import {SettlementDomain} from "../src/lib/SettlementDomain.sol";
import {Adapter, Pipeline, Receipt, StructHash, Voucher} from "../src/lib/Types.sol";
import {Pipelines} from "../src/settlement/Pipelines.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice The domain of any settlement, opened for comparison.
contract Domain is SettlementDomain {
    constructor(address settlement) SettlementDomain(settlement) {}

    function digest(bytes32 structHash) external view returns (bytes32) {
        return _digest(structHash);
    }

    function recover(bytes32 hash, bytes calldata signature) external pure returns (address) {
        return ECDSA.recoverCalldata(hash, signature);
    }

    function verify(bytes32[] calldata proof, bytes32 root, bytes32 leaf) external pure returns (bool) {
        return MerkleProof.verifyCalldata(proof, root, leaf);
    }
}

/// @notice The contracts agree with the protocol's published vectors (tests/vectors), byte for byte and wei for wei.
contract VectorsTest is World {
    function test_StructsDigestsAndSigners() public {
        string memory json = vm.readFile("../tests/vectors/eip712.json");
        vm.chainId(vm.parseJsonUint(json, ".domain.chainId"));
        Domain domain = new Domain(vm.parseJsonAddress(json, ".domain.verifyingContract"));
        uint256 seen;
        for (uint256 i; vm.keyExistsJson(json, _at(".structs", i, "")); ++i) {
            string memory path = _at(".structs", i, "");
            bytes32 primary = keccak256(bytes(vm.parseJsonString(json, string.concat(path, ".primaryType"))));
            bytes32 typeHash = vm.parseJsonBytes32(json, string.concat(path, ".typeHash"));
            bytes32 found;
            if (primary == keccak256("Voucher")) {
                equal(StructHash.VOUCHER_TYPEHASH, typeHash, "voucher type");
                found = hasher.voucher(_voucherAt(json, string.concat(path, ".value")));
            } else if (primary == keccak256("Receipt")) {
                equal(StructHash.RECEIPT_TYPEHASH, typeHash, "receipt type");
                found = hasher.receipt(_receiptAt(json, string.concat(path, ".value")));
            } else {
                continue;
            }
            ++seen;
            equal(found, vm.parseJsonBytes32(json, string.concat(path, ".structHash")), "struct hash");
            bytes32 digest = domain.digest(found);
            equal(digest, vm.parseJsonBytes32(json, string.concat(path, ".digest")), "digest");
            address by = domain.recover(digest, vm.parseJsonBytes(json, string.concat(path, ".signature")));
            equal(by, vm.parseJsonAddress(json, string.concat(path, ".signer")), "signer");
        }
        equal(seen, 4, "two vouchers and two receipts");
    }

    function test_RefusedSignaturesAreRefused() public {
        string memory json = vm.readFile("../tests/vectors/eip712.json");
        Domain domain = new Domain(address(1));
        uint256 i;
        for (; vm.keyExistsJson(json, _at(".refusedSignatures", i, "")); ++i) {
            bytes32 digest = vm.parseJsonBytes32(json, _at(".refusedSignatures", i, ".digest"));
            bytes memory signature = vm.parseJsonBytes(json, _at(".refusedSignatures", i, ".signature"));
            vm.expectRevert();
            domain.recover(digest, signature);
        }
        isTrue(i >= 8, "all forms tried");
    }

    function test_PipelineIds() public view {
        string memory json = vm.readFile("../tests/vectors/pipeline.json");
        equal(StructHash.PIPELINE_TYPEHASH, keccak256(bytes(vm.parseJsonString(json, ".type"))), "type");
        uint256 i;
        for (; vm.keyExistsJson(json, _at(".pipelines", i, "")); ++i) {
            Pipeline memory p = _pipelineAt(json, _at(".pipelines", i, ".value"));
            bytes32 expected = vm.parseJsonBytes32(json, _at(".pipelines", i, ".pipelineId"));
            equal(settlement.pipelineIdOf(p), expected, "pipeline id");
        }
        equal(i, 5, "all pipelines");
    }

    function test_RefusedPipelinesAreRefused() public {
        string memory json = vm.readFile("../tests/vectors/pipeline.json");
        uint256 tried;
        for (uint256 i; vm.keyExistsJson(json, _at(".refused", i, "")); ++i) {
            // What JSON alone can say, a key too many, calldata cannot.
            if (keccak256(bytes(vm.parseJsonString(json, _at(".refused", i, ".name")))) == keccak256("extra key")) {
                continue;
            }
            Pipeline memory p = _pipelineAt(json, _at(".refused", i, ".value"));
            vm.expectRevert(Pipelines.BadPipeline.selector);
            settlement.registerPipeline(p);
            ++tried;
        }
        equal(tried, 8, "all refused forms");
    }

    function test_MerkleTreesAndLeaves() public {
        string memory json = vm.readFile("../tests/vectors/merkle.json");
        Domain domain = new Domain(address(1));
        uint256 trees;
        for (; vm.keyExistsJson(json, _at(".trees", trees, "")); ++trees) {
            bytes32 root = vm.parseJsonBytes32(json, _at(".trees", trees, ".root"));
            string memory entries = _at(".trees", trees, ".entries");
            for (uint256 i; vm.keyExistsJson(json, _at(entries, i, "")); ++i) {
                address account = vm.parseJsonAddress(json, _at(entries, i, ".account"));
                bytes32 leaf = Leaf.amount(account, vm.parseJsonUint(json, _at(entries, i, ".amount")));
                equal(leaf, vm.parseJsonBytes32(json, _at(entries, i, ".leaf")), "leaf");
                bytes32[] memory proof = vm.parseJsonBytes32Array(json, _at(entries, i, ".proof"));
                isTrue(domain.verify(proof, root, leaf), "proof");
            }
        }
        equal(trees, 6, "all trees");
        bytes32 salt = vm.parseJsonBytes32(json, ".receiptLeaf.salt");
        bytes32 receipt = Leaf.receipt(salt, vm.parseJsonBytes32(json, ".receiptLeaf.digest"));
        equal(receipt, vm.parseJsonBytes32(json, ".receiptLeaf.leaf"), "receipt leaf");
    }

    /// @dev Registers the vectors' rates under the vectors' weights; ids follow the order of the weights given.
    function test_RoyaltiesAndShares() public {
        string memory json = vm.readFile("../tests/vectors/pricing.json");
        uint256 i;
        for (; vm.keyExistsJson(json, _at(".cases", i, "")); ++i) {
            _checkPricing(json, _at(".cases", i, ""), i);
        }
        equal(i, 5, "all cases");
    }

    /// @dev The largest rates, and the most tokens whose royalties stay within 128 bits.
    function test_TheBoundsHold() public {
        string memory json = vm.readFile("../tests/vectors/pricing.json");
        Pipeline memory p = _mixPipeline();
        p.base = keccak256("bounds base");
        p.adapters = new Adapter[](4);
        int32[4] memory weights = [int32(2_147_483_500), 500, -500, -2_147_483_500];
        _registerArtifact(BASE_OWNER, p.base, Kind.Base, 0, _terms(_wei(json, ".bounds", ".rate")));
        for (uint256 i; i < 4; ++i) {
            _registerArtifact(ADAPTER_OWNER, bytes32(i + 1), Kind.Adapter, 0, _terms(_wei(json, ".bounds", ".rate")));
            p.adapters[i] = Adapter(bytes32(i + 1), 1, weights[i]);
        }
        bytes32 id = settlement.registerPipeline(p);
        uint64 most = uint64(_wei(json, ".bounds", ".tokens"));
        equal(settlement.royaltiesAfter(id, most), _wei(json, ".bounds", ".royalties"), "royalties");
        Voucher memory v = _voucher(id, most, 0);
        equal(_redeem(v), 0, "accepted, though nobody could pay it");
        v.cumulativeTokens = most + 1;
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.AmountTooLarge.selector);
        _present(v, s);
    }

    function _checkPricing(string memory json, string memory path, uint256 salt) private {
        Pipeline memory p;
        p.base = keccak256(abi.encode("vector base", salt));
        p.baseTermsVersion = 1;
        _registerArtifact(BASE_OWNER, p.base, Kind.Base, 0, _terms(_wei(json, path, ".baseRate")));
        uint256 count;
        while (vm.keyExistsJson(json, _at(string.concat(path, ".weights"), count, ""))) ++count;
        p.adapters = new Adapter[](count);
        for (uint256 i; i < count; ++i) {
            bytes32 adapterId = bytes32((salt + 1) * 1_000 + i);
            uint128 rate = uint128(vm.parseJsonUint(json, _at(string.concat(path, ".adapterRates"), i, "")));
            _registerArtifact(ADAPTER_OWNER, adapterId, Kind.Adapter, 0, _terms(rate));
            int256 weight = vm.parseJsonInt(json, _at(string.concat(path, ".weights"), i, ""));
            p.adapters[i] = Adapter(adapterId, 1, int32(weight));
        }
        bytes32 id = settlement.registerPipeline(p);
        (Pipelines.Header memory header, Pipelines.Part[] memory parts) = settlement.pipelineOf(id);
        equal(settlement.WEIGHT_ONE() * 1_000_000, _wei(json, path, ".denominator"), "denominator");
        equal(parts.length, header.partCount, "parts");
        for (uint256 i; i < parts.length; ++i) {
            uint256 numerator = vm.parseJsonUint(json, _at(string.concat(path, ".numerators"), i, ""));
            equal(parts[i].numerator, numerator, "numerator");
        }
        string memory steps = string.concat(path, ".steps");
        for (uint256 i; vm.keyExistsJson(json, _at(steps, i, "")); ++i) {
            _checkStep(json, _at(steps, i, ""), id);
        }
    }

    /// @dev Redeems each step's cumulative voucher: what is paid is the step's compute and royalties.
    function _checkStep(string memory json, string memory path, bytes32 id) private {
        uint64 tokens = uint64(_wei(json, path, ".cumulativeTokens"));
        uint128 royalties = _wei(json, path, ".cumulativeRoyalties");
        equal(settlement.royaltiesAfter(id, tokens), royalties, "cumulative royalties");
        _deposit(1 ether);
        uint256 paid = _redeem(_voucher(id, tokens, _wei(json, path, ".cumulativeCompute")));
        equal(paid, _wei(json, path, ".compute") + _wei(json, path, ".royalties"), "the step's fee");
        uint256 before = settlement.claimable(BASE_OWNER);
        _harvest(id);
        uint256 baseShare = vm.parseJsonUint(json, string.concat(path, ".shares[0]"));
        baseTotal[id] += settlement.claimable(BASE_OWNER) - before;
        equal(baseTotal[id], baseShare, "the base's cumulative share");
    }

    mapping(bytes32 => uint256) private baseTotal;

    function _wei(string memory json, string memory path, string memory name) private pure returns (uint128) {
        return uint128(vm.parseJsonUint(json, string.concat(path, name)));
    }

    function _at(string memory path, uint256 index, string memory rest) private pure returns (string memory) {
        return string.concat(path, "[", vm.toString(index), "]", rest);
    }

    function _word(string memory json, string memory path, string memory name) private pure returns (bytes32) {
        return vm.parseJsonBytes32(json, string.concat(path, name));
    }

    function _voucherAt(string memory json, string memory path) private pure returns (Voucher memory v) {
        v.payer = vm.parseJsonAddress(json, string.concat(path, ".payer"));
        v.node = _word(json, path, ".node");
        v.pipelineId = _word(json, path, ".pipelineId");
        v.cumulativeTokens = uint64(_wei(json, path, ".cumulativeTokens"));
        v.cumulativeCompute = _wei(json, path, ".cumulativeCompute");
        v.referenceDigest = _word(json, path, ".referenceDigest");
    }

    function _receiptAt(string memory json, string memory path) private pure returns (Receipt memory r) {
        r.requestDigest = _word(json, path, ".requestDigest");
        r.payer = vm.parseJsonAddress(json, string.concat(path, ".payer"));
        r.node = _word(json, path, ".node");
        r.pipelineId = _word(json, path, ".pipelineId");
        r.status = uint8(_wei(json, path, ".status"));
        r.engineDigest = _word(json, path, ".engineDigest");
        r.promptTokens = uint64(_wei(json, path, ".promptTokens"));
        r.completionTokens = uint64(_wei(json, path, ".completionTokens"));
        r.outputHash = _word(json, path, ".outputHash");
        r.attributionRoot = _word(json, path, ".attributionRoot");
        r.commitmentRoot = _word(json, path, ".commitmentRoot");
        r.compute = _wei(json, path, ".compute");
        r.royalties = _wei(json, path, ".royalties");
        r.startedAt = uint64(_wei(json, path, ".startedAt"));
        r.finishedAt = uint64(_wei(json, path, ".finishedAt"));
        r.seq = uint64(_wei(json, path, ".seq"));
        r.previous = _word(json, path, ".previous");
    }

    function _pipelineAt(string memory json, string memory path) private view returns (Pipeline memory p) {
        p.base = _word(json, path, ".base");
        p.baseTermsVersion = uint32(_wei(json, path, ".baseTermsVersion"));
        p.method = uint8(_wei(json, path, ".method"));
        string memory list = string.concat(path, ".adapters");
        uint256 count;
        while (vm.keyExistsJson(json, _at(list, count, ""))) ++count;
        p.adapters = new Adapter[](count);
        for (uint256 i; i < count; ++i) {
            p.adapters[i].id = vm.parseJsonBytes32(json, _at(list, i, ".id"));
            p.adapters[i].termsVersion = uint32(_wei(json, _at(list, i, ""), ".termsVersion"));
            p.adapters[i].weight = int32(vm.parseJsonInt(json, _at(list, i, ".weight")));
        }
    }
}
