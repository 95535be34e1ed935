// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AccessPolicies, Mode, Scope} from "../src/AccessPolicies.sol";
import {ArtifactRegistry} from "../src/ArtifactRegistry.sol";
import {Component, Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice Artifacts: registration, terms, ownership, access.
contract ArtifactRegistryTest is World {
    bytes32 internal constant NEW = keccak256("new");

    function test_ARegisteredArtifactIsKnown() public view {
        ArtifactRegistry.Artifact memory a = artifacts.artifactOf(adapter);
        equal(a.owner, ADAPTER_OWNER, "owner");
        equal(uint256(a.kind), uint256(Kind.Adapter), "kind");
        (ArtifactRegistry.Version memory v, Component[] memory c) = artifacts.termsOf(adapter, 1);
        equal(v.rate, ADAPTER_RATE, "rate");
        equal(c.length, 3, "components");
        isTrue(c[0].artifact < c[1].artifact && c[1].artifact < c[2].artifact, "in order");
        equal(keccak256(bytes(artifacts.metadataOf(adapter))), keccak256("ipfs://manifest"), "metadata");
        equal(artifacts.ownerOf(NEW), address(0), "unregistered");
        equal(artifacts.acceptedUntil(NEW, 0), type(uint64).max, "unregistered is accepted");
    }

    function test_RegistrationNeedsACommitmentOfTheRightAge() public {
        vm.expectPartialRevert(ArtifactRegistry.BadCommitment.selector);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
        artifacts.commit(artifacts.commitmentOf(address(this), NEW, "s"));
        vm.warp(block.timestamp + 59);
        vm.expectPartialRevert(ArtifactRegistry.BadCommitment.selector);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
        vm.warp(block.timestamp + 1 days);
        vm.expectPartialRevert(ArtifactRegistry.BadCommitment.selector);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
        artifacts.commit(artifacts.commitmentOf(address(this), NEW, "s"));
        vm.warp(block.timestamp + 1 days);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
        vm.expectPartialRevert(ArtifactRegistry.BadCommitment.selector);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
    }

    function test_ACopiedCommitmentIsWorthNothing() public {
        bytes32 commitment = artifacts.commitmentOf(ALICE, NEW, "s");
        vm.prank(ALICE);
        artifacts.commit(commitment);
        vm.prank(STRANGER);
        artifacts.commit(commitment);
        vm.warp(block.timestamp + 60);
        vm.prank(STRANGER);
        vm.expectPartialRevert(ArtifactRegistry.BadCommitment.selector);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
        vm.prank(ALICE);
        artifacts.register(NEW, Kind.Base, 0, "", _terms(1), "s");
    }

    function test_RegistrationBounds() public {
        _commit(adapter);
        vm.expectPartialRevert(ArtifactRegistry.AlreadyRegistered.selector);
        artifacts.register(adapter, Kind.Adapter, 0, "", _terms(1), "s");
        _commit(NEW);
        vm.expectRevert(ArtifactRegistry.BadRegistration.selector);
        artifacts.register(NEW, Kind.None, 0, "", _terms(1), "s");
        vm.expectRevert(ArtifactRegistry.BadRegistration.selector);
        artifacts.register(NEW, Kind.Base, "shares", "", _terms(1), "s");
        _commit(0);
        vm.expectRevert(ArtifactRegistry.BadRegistration.selector);
        artifacts.register(0, Kind.Base, 0, "", _terms(1), "s");
    }

    function test_TermsOfEachKindHaveBounds() public {
        ArtifactRegistry.Terms memory t = _terms(1);
        vm.startPrank(DATA_OWNER);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(DATASET, t);
        t = _with(_terms(0), BASE, 1);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(DATASET, t);
        t = _terms(0);
        t.creditsBps = 10_001;
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(DATASET, t);
        t.creditsBps = 1;
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(PLAIN_DATASET, t);
        vm.stopPrank();

        vm.startPrank(BASE_OWNER);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), adapter, 1);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), BASE, 1);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), NEW, 1);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), DATASET, 0);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), DATASET, 10_001);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(BASE, t);
        t.components = new Component[](9);
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(BASE, t);
        t = _with(_terms(1), DATASET, 10_000);
        t.rate = uint128(type(uint96).max) + 1;
        vm.expectRevert(ArtifactRegistry.BadTerms.selector);
        artifacts.setTerms(BASE, t);
        t.rate -= 1;
        equal(artifacts.setTerms(BASE, t), 2, "a base may pass all to a dataset");
        vm.stopPrank();
    }

    function test_AnAdapterHasOneBaseAndEachComponentOnce() public {
        bytes32 base2 = keccak256("another base");
        _registerArtifact(BASE_OWNER, base2, Kind.Base, 0, _terms(1));
        ArtifactRegistry.Terms memory t = _terms(1);
        t.components = new Component[](2);
        (bytes32 low, bytes32 high) = BASE < base2 ? (BASE, base2) : (base2, BASE);
        t.components[0] = Component(low, 1);
        t.components[1] = Component(high, 1);
        vm.startPrank(ADAPTER_OWNER);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(adapter, t);
        t.components[0] = Component(DATASET, 1);
        t.components[1] = Component(DATASET, 1);
        vm.expectPartialRevert(ArtifactRegistry.BadComponent.selector);
        artifacts.setTerms(adapter, t);
        vm.stopPrank();
    }

    function test_TermsAreNumberedAndTheOldOnesHaveAGrace() public {
        vm.expectPartialRevert(AccessPolicies.NotArtifactOwner.selector);
        artifacts.setTerms(BASE, _terms(5));
        vm.prank(BASE_OWNER);
        equal(artifacts.setTerms(BASE, _terms(5)), 2, "version");
        (, uint128 first,) = artifacts.rateOf(BASE, 1);
        (, uint128 second,) = artifacts.rateOf(BASE, 2);
        (,, bool third) = artifacts.rateOf(BASE, 3);
        equal(first, BASE_RATE, "version 1 never changes");
        equal(second, 5, "version 2");
        isTrue(!third, "there is no version 3");
        equal(artifacts.acceptedUntil(BASE, 1), block.timestamp + TERMS_GRACE, "grace");
        equal(artifacts.acceptedUntil(BASE, 2), type(uint64).max, "current");
        vm.expectPartialRevert(ArtifactRegistry.UnknownTerms.selector);
        artifacts.acceptedUntil(BASE, 3);
        vm.expectPartialRevert(ArtifactRegistry.UnknownTerms.selector);
        artifacts.termsOf(BASE, 3);
        vm.expectPartialRevert(ArtifactRegistry.UnknownTerms.selector);
        artifacts.termsOf(BASE, 0);
    }

    function test_OwnershipPassesInTwoSteps() public {
        vm.expectPartialRevert(AccessPolicies.NotArtifactOwner.selector);
        artifacts.transferOwnership(BASE, STRANGER);
        vm.prank(BASE_OWNER);
        artifacts.transferOwnership(BASE, ALICE);
        equal(artifacts.ownerOf(BASE), BASE_OWNER, "an offer changes nothing");
        vm.prank(STRANGER);
        vm.expectPartialRevert(ArtifactRegistry.NotPendingOwner.selector);
        artifacts.acceptOwnership(BASE);
        vm.prank(BASE_OWNER);
        artifacts.transferOwnership(BASE, address(0));
        vm.prank(ALICE);
        vm.expectPartialRevert(ArtifactRegistry.NotPendingOwner.selector);
        artifacts.acceptOwnership(BASE);
        vm.prank(BASE_OWNER);
        artifacts.transferOwnership(BASE, BOB);
        vm.prank(BOB);
        artifacts.acceptOwnership(BASE);
        equal(artifacts.ownerOf(BASE), BOB, "accepted");
        vm.prank(BOB);
        vm.expectPartialRevert(ArtifactRegistry.NotPendingOwner.selector);
        artifacts.acceptOwnership(BASE);
    }

    function test_MetadataMoves() public {
        vm.expectPartialRevert(AccessPolicies.NotArtifactOwner.selector);
        artifacts.setMetadata(BASE, "x");
        vm.prank(BASE_OWNER);
        artifacts.setMetadata(BASE, "https://mirror.example");
        equal(bytes(artifacts.metadataOf(BASE)).length, 22, "moved");
    }

    // ---- access

    function test_UnregisteredAndPublicArtifactsAreOpen() public view {
        isTrue(artifacts.hasAccess(NEW, Scope.Use, _subject(STRANGER)), "unregistered");
        isTrue(artifacts.hasAccess(BASE, Scope.Use, _subject(STRANGER)), "public");
        isTrue(artifacts.hasAccess(BASE, Scope.Host, node), "any node may host");
    }

    function test_ListsAreSeparateForUseAndHost() public {
        vm.expectPartialRevert(AccessPolicies.NotArtifactOwner.selector);
        artifacts.setPolicy(BASE, Scope.Use, Mode.AllowList, 0, 0);
        bytes32[] memory list = new bytes32[](1);
        list[0] = _subject(ALICE);
        vm.expectPartialRevert(AccessPolicies.NotArtifactOwner.selector);
        artifacts.setListed(BASE, Scope.Use, list, true);
        vm.startPrank(BASE_OWNER);
        artifacts.setPolicy(BASE, Scope.Use, Mode.AllowList, 0, 0);
        artifacts.setListed(BASE, Scope.Use, list, true);
        isTrue(artifacts.hasAccess(BASE, Scope.Use, list[0]), "listed");
        isTrue(artifacts.isListed(BASE, Scope.Use, list[0]), "listed");
        isTrue(!artifacts.hasAccess(BASE, Scope.Use, _subject(BOB)), "not listed");
        isTrue(artifacts.hasAccess(BASE, Scope.Use, _subject(BASE_OWNER)), "owners use what is theirs");
        isTrue(artifacts.hasAccess(BASE, Scope.Host, node), "the other door is open");
        artifacts.setPolicy(BASE, Scope.Host, Mode.AllowList, 0, 0);
        isTrue(!artifacts.hasAccess(BASE, Scope.Host, node), "now closed");
        isTrue(!artifacts.hasAccess(BASE, Scope.Host, _subject(BASE_OWNER)), "an owner is not a node");
        artifacts.setListed(BASE, Scope.Use, list, false);
        isTrue(!artifacts.hasAccess(BASE, Scope.Use, list[0]), "taken off");
        vm.stopPrank();
    }

    function test_LicencesAreBoughtAndExpire() public {
        vm.startPrank(BASE_OWNER);
        vm.expectRevert(AccessPolicies.BadPolicy.selector);
        artifacts.setPolicy(BASE, Scope.Use, Mode.Licence, 1 ether, 0);
        vm.expectRevert(AccessPolicies.BadPolicy.selector);
        artifacts.setPolicy(BASE, Scope.Use, Mode.Public, 1, 0);
        vm.expectRevert(AccessPolicies.BadPolicy.selector);
        artifacts.setPolicy(BASE, Scope.Use, Mode.AllowList, 0, 1);
        artifacts.setPolicy(BASE, Scope.Use, Mode.Licence, 1 ether, 30 days);
        vm.stopPrank();
        equal(artifacts.policyOf(BASE, Scope.Use).price, 1 ether, "price");
        bytes32 subject = _subject(payer);
        isTrue(!artifacts.hasAccess(BASE, Scope.Use, subject), "not yet");
        vm.startPrank(payer);
        vm.expectPartialRevert(AccessPolicies.NotForSale.selector);
        artifacts.buy{value: 1 ether}(BASE, Scope.Host, subject, 1 ether, 0);
        vm.expectPartialRevert(AccessPolicies.PriceTooHigh.selector);
        artifacts.buy{value: 1 ether}(BASE, Scope.Use, subject, 1 ether - 1, 0);
        vm.expectPartialRevert(AccessPolicies.PriceTooHigh.selector);
        artifacts.buy{value: 1 ether - 1}(BASE, Scope.Use, subject, 1 ether, 0);
        vm.expectPartialRevert(AccessPolicies.DurationTooShort.selector);
        artifacts.buy{value: 1 ether}(BASE, Scope.Use, subject, 1 ether, 31 days);
        uint64 until = artifacts.buy{value: 3 ether}(BASE, Scope.Use, subject, 1 ether, 30 days);
        equal(until, block.timestamp + 30 days, "until");
        equal(artifacts.buy{value: 1 ether}(BASE, Scope.Use, subject, 1 ether, 0), until + 30 days, "prolonged");
        vm.stopPrank();
        equal(artifacts.licensedUntil(BASE, Scope.Use, subject), until + 30 days, "recorded");
        equal(artifacts.claimable(BASE_OWNER), 2 ether, "proceeds");
        equal(artifacts.claimable(payer), 2 ether, "change");
        vm.warp(until + 30 days);
        isTrue(artifacts.hasAccess(BASE, Scope.Use, subject), "to the last second");
        vm.warp(until + 30 days + 1);
        isTrue(!artifacts.hasAccess(BASE, Scope.Use, subject), "expired");
        vm.prank(payer);
        equal(artifacts.buy{value: 1 ether}(BASE, Scope.Use, subject, 1 ether, 0), block.timestamp + 30 days, "anew");
        artifacts.claim(BASE_OWNER);
        equal(BASE_OWNER.balance, 3 ether, "paid to the owner");
        artifacts.claim(payer);
        equal(address(artifacts).balance, 0, "nothing stays");
        vm.expectPartialRevert(AccessPolicies.NothingToClaim.selector);
        artifacts.claim(payer);
    }

    function test_AFreeLicenceCreditsNobody() public {
        vm.prank(BASE_OWNER);
        artifacts.setPolicy(BASE, Scope.Host, Mode.Licence, 0, 1);
        artifacts.buy(BASE, Scope.Host, node, 0, 1);
        equal(artifacts.claimable(BASE_OWNER), 0, "free");
        isTrue(artifacts.hasAccess(BASE, Scope.Host, node), "licensed");
    }

    function test_ConstructorBounds() public {
        vm.expectRevert(ArtifactRegistry.BadParameter.selector);
        new ArtifactRegistry(1, 0, 1);
        vm.expectRevert(ArtifactRegistry.BadParameter.selector);
        new ArtifactRegistry(1, 5, 5);
    }

    function _commit(bytes32 id) private {
        artifacts.commit(artifacts.commitmentOf(address(this), id, "s"));
        vm.warp(block.timestamp + 60);
    }

    function _with(ArtifactRegistry.Terms memory t, bytes32 id, uint16 bps)
        private
        pure
        returns (ArtifactRegistry.Terms memory)
    {
        t.components = new Component[](1);
        t.components[0] = Component(id, bps);
        return t;
    }

    function _subject(address account) private pure returns (bytes32) {
        return bytes32(uint256(uint160(account)));
    }
}
