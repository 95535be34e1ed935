// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {NodeRegistry} from "../src/NodeRegistry.sol";
import {StructHash} from "../src/lib/Types.sol";
import {World} from "./support/World.sol";
import {Vm, vm} from "./support/Vm.sol";

/// @notice Nodes: registration, keys, stake.
contract NodeRegistryTest is World {
    function test_ARegisteredNodeIsKnown() public view {
        NodeRegistry.Node memory n = nodes.nodeOf(node);
        equal(n.owner, OPERATOR, "owner");
        equal(n.key, vm.addr(NODE_KEY), "key follows from the public key");
        equal(n.stake.staked, MIN_STAKE, "stake");
        equal(nodes.recipientOf(node), PAYOUT, "recipient");
        isTrue(nodes.isActive(node) && nodes.isRegistered(node), "in service");
        isTrue(nodes.mayActFor(node, OPERATOR) && nodes.mayActFor(node, n.key), "owner and key act");
        isTrue(!nodes.mayActFor(node, STRANGER) && !nodes.mayActFor(keccak256("none"), address(0)), "others do not");
        equal(keccak256(bytes(nodes.endpointOf(node))), keccak256("https://node.example"), "endpoint");
    }

    function test_ThePeerIdFollowsFromTheKey() public {
        // The libp2p peer id of secp256k1 private key 1 is the identity multihash of 08021221 and the generator point.
        bytes32 id = _registerNode(OPERATOR, 1, PAYOUT);
        bytes memory expected = hex"0025080212210279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        equal(keccak256(nodes.peerIdOf(nodes.nodeOf(id).key)), keccak256(expected), "even y");
        bytes memory odd = nodes.peerIdOf(nodes.nodeOf(_registerNode(OPERATOR, 6, PAYOUT)).key);
        equal(keccak256(odd), keccak256(abi.encodePacked(hex"00250802122103", vm.createWallet(6).publicKeyX)), "odd y");
        equal(nodes.peerIdOf(STRANGER).length, 0, "no key, no peer id");
    }

    function test_AnOwnerHasManyNodesWithStableIds() public {
        bytes32 next = nodes.nextNodeId(OPERATOR);
        isTrue(next != nodes.nextNodeId(STRANGER), "ids depend on the owner");
        equal(_registerNode(OPERATOR, OTHER_NODE_KEY, PAYOUT), next, "foretold");
        isTrue(nodes.nextNodeId(OPERATOR) != next, "and never again");
        equal(nodes.nodeCount(OPERATOR), 2, "count");
    }

    function test_RegistrationNeedsStakeRecipientAndAProofOfTheKey() public {
        (bytes32 x, bytes32 y, uint64 deadline, bytes memory proof) = _proof(OTHER_NODE_KEY, OPERATOR);
        vm.startPrank(OPERATOR);
        vm.expectPartialRevert(NodeRegistry.StakeTooLow.selector);
        nodes.register{value: MIN_STAKE - 1}(x, y, PAYOUT, "", deadline, proof);
        vm.expectRevert(NodeRegistry.ZeroAddress.selector);
        nodes.register{value: MIN_STAKE}(x, y, address(0), "", deadline, proof);
        vm.expectPartialRevert(NodeRegistry.BadKeyProof.selector);
        nodes.register{value: MIN_STAKE}(x, y, PAYOUT, "", deadline + 1, proof);
        vm.expectPartialRevert(NodeRegistry.BadKeyProof.selector);
        nodes.register{value: MIN_STAKE}(y, x, PAYOUT, "", deadline, proof);
        vm.expectPartialRevert(NodeRegistry.BadKeyProof.selector);
        nodes.register{value: MIN_STAKE}(x, y, PAYOUT, "", deadline, hex"00");
        vm.expectPartialRevert(NodeRegistry.EndpointTooLong.selector);
        nodes.register{value: MIN_STAKE}(x, y, PAYOUT, string(new bytes(257)), deadline, proof);
        vm.warp(deadline + 1);
        vm.expectPartialRevert(NodeRegistry.ProofExpired.selector);
        nodes.register{value: MIN_STAKE}(x, y, PAYOUT, "", deadline, proof);
        vm.stopPrank();
    }

    function test_AProofCannotBeUsedByAnotherOwner() public {
        (bytes32 x, bytes32 y, uint64 deadline, bytes memory proof) = _proof(OTHER_NODE_KEY, OPERATOR);
        vm.deal(STRANGER, MIN_STAKE);
        vm.prank(STRANGER);
        vm.expectPartialRevert(NodeRegistry.BadKeyProof.selector);
        nodes.register{value: MIN_STAKE}(x, y, STRANGER, "", deadline, proof);
    }

    function test_AKeyServesOneNodeForEver() public {
        bytes32 second = _registerNode(OPERATOR, OTHER_NODE_KEY, PAYOUT);
        (bytes32 x, bytes32 y, uint64 deadline, bytes memory proof) = _rotation(NODE_KEY, second);
        vm.prank(OPERATOR);
        vm.expectPartialRevert(NodeRegistry.KeyInUse.selector);
        nodes.rotateKey(second, x, y, deadline, proof);
        (x, y, deadline, proof) = _rotation(0x99, second);
        vm.prank(OPERATOR);
        nodes.rotateKey(second, x, y, deadline, proof);
        (x, y, deadline, proof) = _rotation(OTHER_NODE_KEY, second);
        vm.prank(OPERATOR);
        vm.expectPartialRevert(NodeRegistry.KeyInUse.selector);
        nodes.rotateKey(second, x, y, deadline, proof);
    }

    function test_ARetiredKeyIsJudgeableForTheThawOnly() public {
        address old = vm.addr(NODE_KEY);
        uint64 start = nodes.keyOf(old).validFrom;
        isTrue(nodes.isJudgeable(node, old, start), "current");
        isTrue(nodes.isJudgeable(node, old, type(uint64).max), "a current key answers for any later time");
        isTrue(!nodes.isJudgeable(node, old, start - 1), "not before it served");
        isTrue(!nodes.isJudgeable(0, STRANGER, start), "an unknown key serves no node");
        isTrue(!nodes.isJudgeable(keccak256("other"), old, start), "nor another node");
        vm.warp(block.timestamp + 100);
        uint64 end = uint64(block.timestamp);
        (bytes32 x, bytes32 y, uint64 deadline, bytes memory proof) = _rotation(0x99, node);
        vm.prank(OPERATOR);
        nodes.rotateKey(node, x, y, deadline, proof);
        equal(nodes.nodeOf(node).key, vm.addr(0x99), "new key");
        isTrue(nodes.isJudgeable(node, old, end), "for what it signed in its time");
        isTrue(!nodes.isJudgeable(node, old, end + 1), "not for later");
        vm.warp(end + STAKE_THAW);
        isTrue(nodes.isJudgeable(node, old, end), "to the end of the thaw");
        vm.warp(end + STAKE_THAW + 1);
        isTrue(!nodes.isJudgeable(node, old, end), "and no longer");
    }

    function test_OnlyTheOwnerGoverns() public {
        vm.startPrank(vm.addr(NODE_KEY));
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.setRecipient(node, STRANGER);
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.setEndpoint(node, "");
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.thawStake(node, 1);
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.withdrawStake(node);
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.deregister(node);
        vm.expectPartialRevert(NodeRegistry.NotNodeOwner.selector);
        nodes.rotateKey(node, 0, 0, 0, "");
        vm.stopPrank();
        vm.startPrank(OPERATOR);
        vm.expectRevert(NodeRegistry.ZeroAddress.selector);
        nodes.setRecipient(node, address(0));
        nodes.setRecipient(node, ALICE);
        equal(nodes.recipientOf(node), ALICE, "recipient");
        nodes.setEndpoint(node, "/dns4/node.example/tcp/4001");
        equal(bytes(nodes.endpointOf(node)).length, 27, "endpoint");
        vm.stopPrank();
    }

    function test_StakeThawsAndLeaves() public {
        vm.expectRevert(NodeRegistry.NothingToDo.selector);
        nodes.addStake(node);
        nodes.addStake{value: 3 ether}(node);
        vm.startPrank(OPERATOR);
        vm.expectRevert(NodeRegistry.NothingToDo.selector);
        nodes.thawStake(node, 0);
        vm.expectPartialRevert(NodeRegistry.StakeTooLow.selector);
        nodes.thawStake(node, 3 ether + 1);
        vm.expectPartialRevert(NodeRegistry.StakeTooLow.selector);
        nodes.thawStake(node, 5 ether);
        vm.expectRevert(NodeRegistry.NothingToDo.selector);
        nodes.withdrawStake(node);
        nodes.thawStake(node, 1 ether);
        vm.warp(block.timestamp + STAKE_THAW - 1);
        vm.expectPartialRevert(NodeRegistry.StillThawing.selector);
        nodes.withdrawStake(node);
        nodes.thawStake(node, 1 ether);
        vm.warp(block.timestamp + 1);
        vm.expectPartialRevert(NodeRegistry.StillThawing.selector);
        nodes.withdrawStake(node);
        vm.warp(block.timestamp + STAKE_THAW - 1);
        uint256 before = OPERATOR.balance;
        nodes.withdrawStake(node);
        equal(OPERATOR.balance - before, 2 ether, "both, after the later thaw");
        equal(address(nodes).balance, 2 ether, "what stays");
        vm.stopPrank();
    }

    function test_DeregistrationThawsEverythingAndKeepsTheRecipient() public {
        vm.startPrank(OPERATOR);
        nodes.deregister(node);
        isTrue(!nodes.isRegistered(node) && !nodes.isActive(node), "out of service");
        vm.expectPartialRevert(NodeRegistry.NodeIsDeregistered.selector);
        nodes.deregister(node);
        vm.expectPartialRevert(NodeRegistry.NodeIsDeregistered.selector);
        nodes.setEndpoint(node, "");
        vm.expectPartialRevert(NodeRegistry.NodeIsDeregistered.selector);
        nodes.addStake{value: 1}(node);
        nodes.setRecipient(node, ALICE);
        equal(nodes.recipientOf(node), ALICE, "earnings still find their way");
        vm.warp(block.timestamp + STAKE_THAW);
        nodes.withdrawStake(node);
        equal(address(nodes).balance, 0, "all stake left");
        vm.stopPrank();
    }

    function test_AWhollySlashedNodeCanLeave() public {
        for (uint256 i; i < 70; ++i) {
            vm.prank(address(anchor));
            nodes.slash(node, STRANGER);
        }
        isTrue(!nodes.isActive(node), "too little stake");
        vm.prank(OPERATOR);
        nodes.deregister(node);
    }

    function test_SlashingTakesThawingStakeToo() public {
        nodes.addStake{value: 3 ether}(node);
        vm.prank(OPERATOR);
        nodes.thawStake(node, 2 ether);
        vm.expectPartialRevert(NodeRegistry.NotAnchor.selector);
        nodes.slash(node, STRANGER);
        vm.prank(address(anchor));
        (uint256 slashed, uint256 bounty) = nodes.slash(node, STRANGER);
        equal(slashed, 2 ether, "half of all stake");
        equal(bounty, 0.4 ether, "a fifth of that");
        NodeRegistry.Stake memory s = nodes.nodeOf(node).stake;
        equal(s.staked, 1 ether, "staked");
        equal(s.thawing, 1 ether, "thawing");
        nodes.claim(STRANGER);
        equal(STRANGER.balance, 0.4 ether, "bounty paid");
        nodes.claim(address(0));
        equal(TREASURY.balance, 1.6 ether, "the rest to the treasury");
        vm.expectRevert(NodeRegistry.NothingToDo.selector);
        nodes.claim(STRANGER);
    }

    function test_UnknownNodes() public {
        bytes32 none = keccak256("none");
        vm.expectPartialRevert(NodeRegistry.UnknownNode.selector);
        nodes.nodeOf(none);
        vm.expectPartialRevert(NodeRegistry.UnknownNode.selector);
        nodes.recipientOf(none);
        vm.expectPartialRevert(NodeRegistry.UnknownNode.selector);
        nodes.endpointOf(none);
        isTrue(!nodes.isRegistered(none) && !nodes.isActive(none), "not in service");
    }

    function test_ConstructorBounds() public {
        vm.expectRevert(NodeRegistry.ZeroAddress.selector);
        new NodeRegistry(address(0), address(1), 0, 1, 1, 1);
        vm.expectRevert(NodeRegistry.ZeroAddress.selector);
        new NodeRegistry(address(1), address(0), 0, 1, 1, 1);
        vm.expectRevert(NodeRegistry.BadParameter.selector);
        new NodeRegistry(address(1), address(1), 0, 1, 0, 1);
        vm.expectRevert(NodeRegistry.BadParameter.selector);
        new NodeRegistry(address(1), address(1), 0, 1, 10_001, 1);
        vm.expectRevert(NodeRegistry.BadParameter.selector);
        new NodeRegistry(address(1), address(1), 0, 1, 1, 2_001);
    }

    function _proof(uint256 key, address owner) private returns (bytes32, bytes32, uint64, bytes memory) {
        return _proofFor(key, nodes.nextNodeId(owner), owner);
    }

    function _rotation(uint256 key, bytes32 id) private returns (bytes32, bytes32, uint64, bytes memory) {
        return _proofFor(key, id, OPERATOR);
    }

    function _proofFor(uint256 key, bytes32 id, address owner)
        private
        returns (bytes32, bytes32, uint64 deadline, bytes memory)
    {
        Vm.Wallet memory w = vm.createWallet(key);
        deadline = uint64(block.timestamp) + 100;
        bytes memory proof = _sign(key, StructHash.nodeKeyProof(id, owner, deadline));
        return (bytes32(w.publicKeyX), bytes32(w.publicKeyY), deadline, proof);
    }
}
