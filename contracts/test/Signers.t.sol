// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Settlement} from "../src/Settlement.sol";
import {StructHash, Voucher} from "../src/lib/Types.sol";
import {Signers} from "../src/settlement/Signers.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice Payers' signers: proof, revocation, one payer for ever.
contract SignersTest is World {
    bytes32 internal pipeline;

    function setUp() public override {
        super.setUp();
        pipeline = settlement.registerPipeline(_basePipeline());
        _deposit(1 ether);
    }

    function test_AnAuthorizedSignerRedeemsAndARevokedOneThaws() public {
        _authorize(payer, SIGNER_KEY);
        equal(_redeemBySigner(100), 100, "authorised");
        vm.prank(payer);
        settlement.thawSigner(signer);
        uint64 end = uint64(block.timestamp) + SIGNER_THAW;
        equal(settlement.authorizationOf(signer).endsAt, end, "end");
        vm.warp(end - 1);
        vm.prank(payer);
        settlement.thawSigner(signer);
        equal(settlement.authorizationOf(signer).endsAt, end, "a second call changes nothing");
        equal(_redeemBySigner(200), 100, "in its thaw");
        vm.warp(end);
        Voucher memory v = _voucher(pipeline, 0, 300);
        bytes memory s = _signVoucher(SIGNER_KEY, v);
        vm.expectRevert(Settlement.UnauthorizedSigner.selector);
        _present(v, s);
        _authorize(payer, SIGNER_KEY);
        equal(_redeemBySigner(300), 100, "renewed by its payer");
    }

    function test_TheProofIsBoundToPayerDeadlineChainAndContract() public {
        uint64 deadline = uint64(block.timestamp) + 10;
        bytes memory proof = _sign(SIGNER_KEY, StructHash.signerProof(payer, deadline));
        vm.expectPartialRevert(Signers.BadSignerProof.selector);
        settlement.authorizeSigner(signer, deadline, proof);
        vm.startPrank(payer);
        vm.expectPartialRevert(Signers.BadSignerProof.selector);
        settlement.authorizeSigner(signer, deadline + 1, proof);
        vm.expectPartialRevert(Signers.BadSignerProof.selector);
        settlement.authorizeSigner(STRANGER, deadline, proof);
        vm.expectPartialRevert(Signers.BadSignerProof.selector);
        settlement.authorizeSigner(signer, deadline, hex"");
        vm.chainId(1);
        vm.expectPartialRevert(Signers.BadSignerProof.selector);
        settlement.authorizeSigner(signer, deadline, proof);
        vm.chainId(31337);
        vm.warp(deadline + 1);
        vm.expectPartialRevert(Signers.ProofExpired.selector);
        settlement.authorizeSigner(signer, deadline, proof);
        vm.stopPrank();
    }

    function test_ASignerBelongsToOnePayerForEver() public {
        _authorize(payer, SIGNER_KEY);
        vm.prank(payer);
        settlement.thawSigner(signer);
        vm.warp(block.timestamp + 365 days);
        uint64 deadline = uint64(block.timestamp) + 10;
        bytes memory proof = _sign(SIGNER_KEY, StructHash.signerProof(STRANGER, deadline));
        vm.prank(STRANGER);
        vm.expectPartialRevert(Signers.SignerTaken.selector);
        settlement.authorizeSigner(signer, deadline, proof);
        vm.prank(STRANGER);
        vm.expectPartialRevert(Signers.NotYourSigner.selector);
        settlement.thawSigner(signer);
    }

    function test_WhoMaySign() public {
        isTrue(settlement.maySign(payer, payer), "itself");
        isTrue(!settlement.maySign(payer, signer), "nobody else");
        isTrue(!settlement.maySign(address(0), signer), "never for the zero address");
        isTrue(!settlement.maySign(address(0), address(0)), "not even by it");
        _authorize(payer, SIGNER_KEY);
        isTrue(settlement.maySign(payer, signer), "authorised");
        isTrue(!settlement.maySign(STRANGER, signer), "for its payer only");
    }

    function _redeemBySigner(uint128 compute) private returns (uint256) {
        Voucher memory v = _voucher(pipeline, 0, compute);
        return _present(v, _signVoucher(SIGNER_KEY, v));
    }
}
