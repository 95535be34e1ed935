// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {ArtifactRegistry} from "../src/ArtifactRegistry.sol";
import {Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {Adapter, Pipeline} from "../src/lib/Types.sol";
import {Pipelines} from "../src/settlement/Pipelines.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice Pipelines: one canonical form, rates fixed by the versions named.
contract PipelinesTest is World {
    function test_RegisteringTwiceChangesNothing() public {
        bytes32 id = settlement.registerPipeline(_mixPipeline());
        equal(id, hasher.pipeline(_mixPipeline()), "the id is the struct hash");
        (Pipelines.Header memory header, Pipelines.Part[] memory parts) = settlement.pipelineOf(id);
        equal(header.numeratorSum, uint256(BASE_RATE) * 10_000 + uint256(ADAPTER_RATE) * 10_000, "sum");
        equal(parts.length, 3, "parts");
        equal(parts[2].numerator, uint256(ADAPTER_RATE) * 3_000, "negative weights count by size");
        vm.prank(BASE_OWNER);
        artifacts.setTerms(BASE, _terms(BASE_RATE * 2));
        equal(settlement.registerPipeline(_mixPipeline()), id, "again");
        equal(settlement.royaltiesAfter(id, 1_000_000), uint256(BASE_RATE) + ADAPTER_RATE, "the named version's rates");
    }

    function test_OnlyTheCanonicalFormRegisters() public {
        Pipeline memory p = _mixPipeline();
        p.method = 7;
        _refused(p, Pipelines.BadPipeline.selector);
        p = _basePipeline();
        p.method = 1;
        _refused(p, Pipelines.BadPipeline.selector);
        p = _adapterPipeline();
        p.method = 1;
        _refused(p, Pipelines.BadPipeline.selector);
        p = _adapterPipeline();
        int32[4] memory weights = [int32(0), 499, -1, type(int32).min];
        for (uint256 i; i < 4; ++i) {
            p.adapters[0].weight = weights[i];
            _refused(p, Pipelines.BadPipeline.selector);
        }
        p = _mixPipeline();
        (p.adapters[0], p.adapters[1]) = (p.adapters[1], p.adapters[0]);
        _refused(p, Pipelines.BadPipeline.selector);
        p.adapters[1] = p.adapters[0];
        _refused(p, Pipelines.BadPipeline.selector);
        p = _adapterPipeline();
        p.adapters[0].id = p.base;
        _refused(p, Pipelines.BadPipeline.selector);
        p.adapters = new Adapter[](5);
        for (uint256 i; i < 5; ++i) {
            p.adapters[i] = Adapter(bytes32(i + 1), 0, 500);
        }
        _refused(p, Pipelines.BadPipeline.selector);
    }

    function test_TermsMustExistAndKindsMustFit() public {
        Pipeline memory p = _basePipeline();
        p.baseTermsVersion = 2;
        _refused(p, Pipelines.UnknownTerms.selector);
        p.base = adapter;
        p.baseTermsVersion = 1;
        _refused(p, Pipelines.WrongKind.selector);
        p = _adapterPipeline();
        p.adapters[0].termsVersion = 9;
        _refused(p, Pipelines.UnknownTerms.selector);
        p.adapters[0] = Adapter(DATASET, 1, 500);
        _refused(p, Pipelines.WrongKind.selector);
    }

    function test_TheLargestWeightsAndRatesFit() public {
        Pipeline memory p;
        p.base = keccak256("largest base");
        p.baseTermsVersion = 1;
        p.method = 1;
        p.adapters = new Adapter[](4);
        bytes32[4] memory ids;
        for (uint256 i; i < 4; ++i) {
            ids[i] = bytes32(i + 1);
            _registerArtifact(ADAPTER_OWNER, ids[i], Kind.Adapter, 0, _terms(type(uint96).max));
            p.adapters[i] = Adapter(ids[i], 1, i % 2 == 0 ? int32(2_147_483_500) : int32(-2_147_483_500));
        }
        _registerArtifact(BASE_OWNER, p.base, Kind.Base, 0, _terms(type(uint96).max));
        bytes32 id = settlement.registerPipeline(p);
        equal(settlement.royaltiesAfter(id, 1_000_000), 5 * uint256(type(uint96).max), "base and adapters at full rate");
        settlement.royaltiesAfter(id, type(uint64).max);
    }

    function testFuzz_RoyaltiesFollowTheFormula(uint64 tokens, uint96 rate, uint32 weight) public {
        bytes32 id = keccak256("fuzzed adapter");
        int32 w = int32(int256(bound(weight, 1, 4_000_000) * 500));
        _registerArtifact(ADAPTER_OWNER, id, Kind.Adapter, 0, _terms(rate));
        Pipeline memory p = _adapterPipeline();
        p.adapters[0] = Adapter(id, 1, w);
        bytes32 pipelineId = settlement.registerPipeline(p);
        uint256 counted = uint256(int256(w)) < 10_000 ? uint256(int256(w)) : 10_000;
        uint256 expected = uint256(tokens) * (uint256(BASE_RATE) * 10_000 + rate * counted) / 1e10;
        equal(
            settlement.royaltiesAfter(pipelineId, tokens), expected, "an adapter earns its rate at weight 1 and above"
        );
    }

    function test_AnAdapterAddedToTheMixDilutesNobody() public {
        uint256 alone = settlement.royaltiesAfter(settlement.registerPipeline(_adapterPipeline()), 1e9);
        Pipeline memory p = _adapterPipeline();
        Adapter memory real = p.adapters[0];
        p.adapters = new Adapter[](2);
        Adapter memory dummy = Adapter(keccak256("all zero"), 0, 2_147_483_500);
        (p.adapters[0], p.adapters[1]) = real.id < dummy.id ? (real, dummy) : (dummy, real);
        equal(settlement.royaltiesAfter(settlement.registerPipeline(p), 1e9), alone, "the real adapter earns the same");
    }

    function test_RatesAreBounded() public {
        bytes32 id = keccak256("greedy");
        _registerArtifact(ADAPTER_OWNER, id, Kind.Adapter, 0, _terms(type(uint96).max));
        vm.prank(ADAPTER_OWNER);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(id, _terms(uint128(type(uint96).max) + 1));
    }

    function _refused(Pipeline memory p, bytes4 reason) private {
        vm.expectRevert(reason);
        settlement.registerPipeline(p);
    }
}
