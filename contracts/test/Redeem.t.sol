// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Settlement} from "../src/Settlement.sol";
import {Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {Pipeline, Voucher} from "../src/lib/Types.sol";
import {Escrow} from "../src/settlement/Escrow.sol";
import {Payouts} from "../src/settlement/Payouts.sol";
import {Pipelines} from "../src/settlement/Pipelines.sol";
import {World} from "./support/World.sol";
import {Vm, vm} from "./support/Vm.sol";

/// @notice Vouchers in, wei out of escrow: amounts, order, signatures, terms, shortfalls.
contract RedeemTest is World {
    bytes32 internal mix;

    function setUp() public override {
        super.setUp();
        mix = settlement.registerPipeline(_mixPipeline());
    }

    function test_PaysComputeAndRoyalties() public {
        _deposit(1 ether);
        uint256 paid = _redeem(_voucher(mix, 1_000_003, 1e15));
        // floor(1,000,003 * (4e12 * 10,000 + 10e12 * 7,000 + 10e12 * 3,000) / (10,000 * 1e6))
        uint256 royalties = 14_000_042_000_000;
        equal(settlement.royaltiesAfter(mix, 1_000_003), royalties, "royalties");
        equal(paid, 1e15 + royalties, "paid");
        equal(_balance(), 1 ether - paid, "escrow");
        (uint128 operator, uint128 protocol) = settlement.ledgerOf(node);
        equal(protocol, 5e13, "protocol: 5 % of compute");
        equal(operator, 95e13, "operator: the rest of compute");
        (uint128 accrued,) = settlement.accumulatorOf(node, mix);
        equal(accrued, royalties, "accrued");
        equal(_redeem(_voucher(mix, 2_000_003, 3e15)), 2e15 + 14e12, "only the difference");
    }

    function test_RoundsOnCumulativeTokensOnly() public {
        _deposit(1 ether);
        uint256 paid;
        for (uint64 tokens = 1; tokens <= 7; ++tokens) {
            paid += _redeem(_voucher(mix, tokens * 333, 0));
        }
        equal(paid, settlement.royaltiesAfter(mix, 7 * 333), "many small vouchers cost what one large costs");
    }

    function test_StaleIsNoErrorAndPaysNothing() public {
        _deposit(1 ether);
        _redeem(_voucher(mix, 100, 100));
        uint256 before = _balance();
        equal(_redeem(_voucher(mix, 100, 100)), 0, "same again");
        equal(_redeem(_voucher(mix, 99, 100)), 0, "older");
        equal(_redeem(_voucher(mix, 0, 0)), 0, "empty");
        equal(_balance(), before, "escrow untouched");
    }

    function test_ConflictReverts() public {
        _deposit(1 ether);
        _redeem(_voucher(mix, 100, 100));
        Voucher memory v = _voucher(mix, 101, 99);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.ConflictingVoucher.selector);
        _present(v, s);
        v = _voucher(mix, 99, 101);
        s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.ConflictingVoucher.selector);
        _present(v, s);
    }

    function test_UnknownPipelineAndAbsurdAmountsRevert() public {
        Voucher memory v = _voucher(keccak256("no pipeline"), 1, 1);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Pipelines.UnknownPipeline.selector);
        _present(v, s);
        v = _voucher(mix, type(uint64).max, type(uint128).max);
        s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.AmountTooLarge.selector);
        _present(v, s);
        v = _voucher(mix, uint64(1) << 63, 0);
        s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.AmountTooLarge.selector);
        _present(v, s);
        v = _voucher(mix, uint64(type(int64).max), type(uint128).max);
        s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.AmountTooLarge.selector);
        _present(v, s);
        vm.expectRevert(Pipelines.UnknownPipeline.selector);
        settlement.royaltiesAfter(keccak256("no pipeline"), 1);
        vm.expectRevert(Pipelines.UnknownPipeline.selector);
        settlement.redeemableUntil(keccak256("no pipeline"));
    }

    function test_RefusesEveryOtherFormOfASignature() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(mix, 100, 100);
        (uint8 vv, bytes32 r, bytes32 s) = vm.sign(PAYER_KEY, settlement.voucherDigest(v));
        uint256 order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141;
        bytes[6] memory forms = [
            abi.encodePacked(r, bytes32(order - uint256(s)), vv == 27 ? uint8(28) : uint8(27)),
            abi.encodePacked(r, s, vv - 27),
            abi.encodePacked(r, s),
            abi.encodePacked(r, s, vv, uint8(0)),
            bytes(""),
            abi.encodePacked(bytes32(0), s, vv)
        ];
        for (uint256 i; i < forms.length; ++i) {
            vm.expectRevert(Settlement.BadSignature.selector);
            _present(v, forms[i]);
        }
        equal(_redeem(v), 100 + 14e8, "the one good form redeems");
    }

    function test_StrangersSignatureIsRefused() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(mix, 100, 100);
        bytes memory s = _signVoucher(SIGNER_KEY, v);
        vm.expectRevert(Settlement.UnauthorizedSigner.selector);
        _present(v, s);
        v.payer = address(0);
        s = _signVoucher(SIGNER_KEY, v);
        vm.expectRevert(Settlement.UnauthorizedSigner.selector);
        _present(v, s);
    }

    function test_AVoucherOfAnotherChainOrContractIsRefused() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(mix, 100, 100);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.chainId(1612);
        vm.expectRevert(Settlement.UnauthorizedSigner.selector);
        _present(v, s);
        equal(_redeem(v), 100 + 14e8, "signed for the new chain id");
    }

    function test_EachSignerHasItsOwnChannel() public {
        _deposit(1 ether);
        _authorize(payer, SIGNER_KEY);
        Voucher memory v = _voucher(mix, 0, 100);
        _redeem(v);
        equal(_present(v, _signVoucher(SIGNER_KEY, v)), 100, "the same amounts, another debt");
        (Settlement.Channel memory c,) = settlement.channelOf(payer, signer, node, mix);
        equal(c.compute, 100, "the signer's channel");
    }

    function test_ASignersCodeDoesNotVoidItsVouchers() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(mix, 0, 100);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.etch(payer, abi.encodePacked(hex"ef0100", address(this)));
        equal(_present(v, s), 100, "delegated code (EIP-7702) changes nothing");
    }

    // ---- shortfall

    function test_ShortfallPaysProRataAndIsRemembered() public {
        _deposit(1_000);
        Voucher memory v = _voucher(mix, 1_000, 14_000_000_000 * 3);
        // due: 42e9 compute, 14e9 royalties; 1,000 wei: 750 and 250
        equal(_redeem(v), 1_000, "all that is there");
        (uint128 operator, uint128 protocol) = settlement.ledgerOf(node);
        equal(operator + protocol, 750, "compute's part");
        (uint128 accrued,) = settlement.accumulatorOf(node, mix);
        equal(accrued, 250, "royalties' part");
        (Settlement.Channel memory c, Settlement.Amounts memory debt) = settlement.channelOf(payer, payer, node, mix);
        isTrue(c.indebted, "indebted");
        equal(debt.compute, 42e9 - 750, "compute owed");
        equal(debt.royalties, 14e9 - 250, "royalties owed");

        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.collect(payer, payer, node, mix);
        _deposit(500);
        equal(settlement.collect(payer, payer, node, mix), 500, "collected in part");
        _deposit(1 ether);
        equal(_redeem(v), 56e9 - 1_500, "the same voucher collects the rest");
        (c, debt) = settlement.channelOf(payer, payer, node, mix);
        isTrue(!c.indebted && debt.compute == 0 && debt.royalties == 0, "paid off");
        equal(_redeem(v), 0, "and nothing twice");
        vm.expectRevert(Payouts.NothingToPay.selector);
        settlement.collect(payer, payer, node, mix);
    }

    function test_AnEmptyEscrowStillRecordsTheVoucher() public {
        equal(_redeem(_voucher(mix, 0, 100)), 0, "nothing there");
        equal(_redeem(_voucher(mix, 0, 300)), 0, "still nothing");
        _deposit(1_000);
        equal(_redeem(_voucher(mix, 0, 400)), 400, "new and owed together");
        (Settlement.Channel memory c,) = settlement.channelOf(payer, payer, node, mix);
        isTrue(!c.indebted, "paid off");
    }

    function test_DebtOutlivesTermsAndSigner() public {
        _authorize(payer, SIGNER_KEY);
        Voucher memory v = _voucher(mix, 1_000, 100);
        bytes memory s = _signVoucher(SIGNER_KEY, v);
        _present(v, s);
        vm.prank(payer);
        settlement.thawSigner(signer);
        vm.prank(BASE_OWNER);
        artifacts.setTerms(BASE, _terms(1));
        vm.warp(block.timestamp + 365 days);
        _deposit(1 ether);
        equal(settlement.collect(payer, signer, node, mix), 100 + 14e9, "accepted in time, paid late");
    }

    function testFuzz_PartsSumToWhatLeftEscrow(uint96 deposit, uint32 tokens, uint96 compute) public {
        uint256 amount = bound(deposit, 1, 500 ether);
        _deposit(amount);
        uint256 due = compute + settlement.royaltiesAfter(mix, tokens);
        uint256 paid = _redeem(_voucher(mix, tokens, compute));
        equal(paid, due < amount ? due : amount, "all that is due, as far as escrow reaches");
        equal(_balance(), amount - paid, "escrow pays exactly that");
        (uint128 operator, uint128 protocol) = settlement.ledgerOf(node);
        (uint128 accrued,) = settlement.accumulatorOf(node, mix);
        equal(uint256(operator) + protocol + accrued, paid, "parts sum to the whole");
        isTrue(operator + protocol <= compute, "compute is never overpaid");
        (, Settlement.Amounts memory debt) = settlement.channelOf(payer, payer, node, mix);
        equal(uint256(debt.compute) + debt.royalties, due - paid, "the rest is owed");
        _deposit(500 ether);
        _deposit(200 ether);
        uint256 later = _redeem(_voucher(mix, tokens, compute));
        equal(paid + later, due < amount + 700 ether ? due : amount + 700 ether, "owed is paid, once");
    }

    // ---- terms

    function test_SupersededTermsRedeemForTheGracePeriod() public {
        _deposit(1 ether);
        vm.prank(ADAPTER_OWNER);
        artifacts.setTerms(adapter2, _terms(99e12));
        uint64 until = uint64(block.timestamp) + TERMS_GRACE;
        equal(settlement.redeemableUntil(mix), until, "until");
        vm.warp(until);
        equal(_redeem(_voucher(mix, 1_000, 0)), 14e9, "at the old rate");
        vm.warp(until + 1);
        Voucher memory v = _voucher(mix, 2_000, 0);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.TermsSuperseded.selector);
        _present(v, s);
        equal(_redeem(_voucher(mix, 1_000, 0)), 0, "stale is no error even then");
    }

    function test_UnregisteredIsFreeUntilItIsRegistered() public {
        Pipeline memory p = _unregistered();
        bytes32 id = settlement.registerPipeline(p);
        _deposit(1 ether);
        vm.warp(block.timestamp + 3_650 days);
        equal(_redeem(_voucher(id, 1_000_000, 7)), 7, "no royalties");
        _registerArtifact(STRANGER, p.base, Kind.Base, 0, _terms(1e12));
        vm.warp(block.timestamp + TERMS_GRACE);
        equal(_redeem(_voucher(id, 2_000_000, 8)), 1, "grace");
        vm.warp(block.timestamp + 1);
        Voucher memory v = _voucher(id, 3_000_000, 9);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.expectRevert(Settlement.TermsSuperseded.selector);
        _present(v, s);
    }

    // ---- batches

    function test_ABatchSkipsWhatIsBadAndPaysTheRest() public {
        _deposit(1 ether);
        _redeem(_voucher(mix, 50, 50));
        Pipeline[] memory fresh = new Pipeline[](3);
        fresh[0] = _adapterPipeline();
        fresh[1] = _adapterPipeline();
        fresh[1].adapters[0].weight = 1;
        fresh[2] = _mixPipeline();
        bytes32 fromBatch = settlement.pipelineIdOf(fresh[0]);
        Voucher[] memory vs = new Voucher[](8);
        bytes[] memory ss = new bytes[](8);
        vs[0] = _voucher(mix, 49, 50);
        vs[1] = _voucher(mix, 51, 49);
        vs[2] = _voucher(keccak256("none"), 1, 1);
        vs[3] = _voucher(fromBatch, 0, 1_000);
        vs[4] = _voucher(mix, 50, 60);
        vs[5] = _voucher(mix, 50, 70);
        vs[6] = _voucher(mix, type(uint64).max, type(uint128).max);
        vs[7] = _voucher(mix, 50, 80);
        for (uint256 i; i < 8; ++i) {
            ss[i] = _signVoucher(PAYER_KEY, vs[i]);
        }
        ss[7] = hex"00";
        vm.recordLogs();
        equal(_presentMany(fresh, vs, ss), 1_020, "the good ones");
        bytes4[8] memory reasons = [
            Settlement.StaleVoucher.selector,
            Settlement.ConflictingVoucher.selector,
            Pipelines.UnknownPipeline.selector,
            bytes4(0),
            bytes4(0),
            bytes4(0),
            Settlement.AmountTooLarge.selector,
            Settlement.BadSignature.selector
        ];
        _checkSkips(reasons);
        equal(_balance(), 1 ether - 50 - 700_000_000 - 1_020, "escrow");
    }

    function test_ABatchPaysEachPipelineItsOwnRates() public {
        _deposit(1 ether);
        bytes32 plain = settlement.registerPipeline(_basePipeline());
        bytes32[4] memory order = [mix, plain, keccak256("none"), mix];
        Voucher[] memory vs = new Voucher[](4);
        bytes[] memory ss = new bytes[](4);
        for (uint64 i; i < 4; ++i) {
            vs[i] = _voucher(order[i], (i + 1) * 1_000_000, 0);
            ss[i] = _signVoucher(PAYER_KEY, vs[i]);
        }
        equal(_presentMany(new Pipeline[](0), vs, ss), 4 * 14e12 + 2 * 4e12, "each at its rates, none at all");
    }

    function test_ABatchNeedsASignatureForEachVoucher() public {
        vm.expectRevert(Settlement.LengthMismatch.selector);
        _presentMany(new Pipeline[](0), new Voucher[](1), new bytes[](0));
    }

    function test_ADebtIsCollectedInABatch() public {
        Voucher memory v = _voucher(mix, 0, 100);
        _redeem(v);
        _deposit(60);
        Voucher[] memory vs = new Voucher[](1);
        bytes[] memory ss = new bytes[](1);
        (vs[0], ss[0]) = (v, _signVoucher(PAYER_KEY, v));
        equal(_presentMany(new Pipeline[](0), vs, ss), 60, "stale voucher, open debt");
    }

    function test_APayersOwnNodeReachesOnlyItsOwnEscrow() public {
        _deposit(1 ether);
        bytes32 own = _registerNode(payer, OTHER_NODE_KEY, payer);
        Voucher memory v = _voucher(mix, 0, 1 ether);
        v.node = own;
        equal(_present(v, _signVoucher(PAYER_KEY, v)), 0, "nothing lies with that node");
        equal(_balance(), 1 ether, "the honest node's escrow is untouched");
    }

    // ---- who redeems

    /// @dev A payer would overtake the node's vouchers with one of many tokens and no compute: all it holds would conflict.
    function test_APayerCannotVoidWhatItsNodeHolds() public {
        _deposit(1 ether);
        bytes32 free = settlement.registerPipeline(_unregistered());
        Voucher memory held = _voucher(free, 1_000, 1 ether);
        Voucher memory poison = _voucher(free, uint64(1) << 62, 0);
        bytes memory s = _signVoucher(PAYER_KEY, poison);
        vm.prank(payer);
        vm.expectRevert(Settlement.NotPayee.selector);
        settlement.redeem(poison, s);
        equal(_redeem(held), 1 ether, "what was served is paid");
    }

    /// @dev A payer that owns an artifact would sign itself royalties, and have its escrow back without a thaw.
    function test_APayerCannotPayItsEscrowOutToItself() public {
        _deposit(1 ether);
        _registerArtifact(payer, keccak256("own base"), Kind.Base, 0, _terms(1 ether));
        Pipeline memory p = _basePipeline();
        p.base = keccak256("own base");
        bytes32 own = settlement.registerPipeline(p);
        Voucher[] memory vs = new Voucher[](1);
        bytes[] memory ss = new bytes[](1);
        vs[0] = _voucher(own, 1_000_000, 0);
        ss[0] = _signVoucher(PAYER_KEY, vs[0]);
        vm.recordLogs();
        vm.prank(payer);
        equal(settlement.redeemMany(new Pipeline[](0), vs, ss), 0, "skipped");
        Vm.Log[] memory logs = vm.getRecordedLogs();
        equal(logs.length, 1, "one event");
        equal(abi.decode(logs[0].data, (bytes32)), bytes32(Settlement.NotPayee.selector), "and says why");
        equal(_balance(), 1 ether, "escrow untouched");
    }

    function test_TheNodesOwnerAndItsNewKeyRedeemWhatTheOldKeyWasGiven() public {
        _deposit(1 ether);
        Voucher memory v = _voucher(mix, 0, 100);
        bytes memory s = _signVoucher(PAYER_KEY, v);
        vm.prank(OPERATOR);
        equal(settlement.redeem(v, s), 100, "its owner");
        _rotateKey(node, OTHER_NODE_KEY);
        v.cumulativeCompute = 200;
        s = _signVoucher(PAYER_KEY, v);
        vm.prank(vm.addr(NODE_KEY));
        vm.expectRevert(Settlement.NotPayee.selector);
        settlement.redeem(v, s);
        vm.prank(vm.addr(OTHER_NODE_KEY));
        equal(settlement.redeem(v, s), 100, "its new key");
        vm.prank(OPERATOR);
        nodes.deregister(node);
        v.cumulativeCompute = 300;
        s = _signVoucher(PAYER_KEY, v);
        vm.prank(vm.addr(OTHER_NODE_KEY));
        equal(settlement.redeem(v, s), 100, "out of service too");
    }

    function test_ABatchPaysTheCallersNodesOnly() public {
        _deposit(1 ether);
        bytes32 other = _registerNode(STRANGER, OTHER_NODE_KEY, STRANGER);
        vm.prank(payer);
        settlement.deposit{value: 1 ether}(other);
        Voucher[] memory vs = new Voucher[](4);
        bytes[] memory ss = new bytes[](4);
        for (uint128 i; i < 4; ++i) {
            vs[i] = _voucher(mix, 0, 100 * (i + 1));
            if (i % 2 == 1) vs[i].node = other;
            if (i == 3) vs[i].node = 0;
            ss[i] = _signVoucher(PAYER_KEY, vs[i]);
        }
        equal(_presentMany(new Pipeline[](0), vs, ss), 300, "its own, and no other's between them");
        equal(settlement.accountOf(payer, other).balance, 1 ether, "the other node's escrow");
    }

    function test_RedeemReachesThawingFunds() public {
        _deposit(1_000);
        vm.prank(payer);
        settlement.thaw(node, 800);
        vm.warp(block.timestamp + ESCROW_THAW);
        equal(_redeem(_voucher(mix, 0, 900)), 900, "thawed but not withdrawn");
        Escrow.Account memory a = settlement.accountOf(payer, node);
        equal(a.thawing, 100, "thawing is capped by the balance");
        vm.prank(payer);
        equal(settlement.withdraw(node), 100, "the rest");
    }

    /// @dev Nobody has registered its base, so it is free.
    function _unregistered() private pure returns (Pipeline memory p) {
        p.base = keccak256("somebody's base");
    }

    function _checkSkips(bytes4[8] memory reasons) private {
        Vm.Log[] memory logs = vm.getRecordedLogs();
        uint256 skips;
        uint256 pipelinesSkipped;
        for (uint256 i; i < logs.length; ++i) {
            if (logs[i].topics[0] == Settlement.VoucherSkipped.selector) {
                ++skips;
                uint256 index = uint256(logs[i].topics[1]);
                equal(bytes32(reasons[index]), bytes32(abi.decode(logs[i].data, (bytes4))), "reason");
            }
            if (logs[i].topics[0] == Settlement.PipelineSkipped.selector) {
                ++pipelinesSkipped;
                equal(uint256(logs[i].topics[1]), 1, "which pipeline");
            }
        }
        equal(skips, 5, "skips");
        equal(pipelinesSkipped, 1, "pipeline skips");
    }
}
