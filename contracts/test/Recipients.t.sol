// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Mode, Scope} from "../src/AccessPolicies.sol";
import {Kind} from "../src/interfaces/IArtifactRegistry.sol";
import {Coin} from "../src/lib/Coin.sol";
import {Tree} from "./support/Tree.sol";
import {World} from "./support/World.sol";
import {vm} from "./support/Vm.sol";

/// @notice A recipient that refuses, or answers a payment with a call of its own, or with a flood of return data.
contract Hostile {
    enum Manner {
        Accept,
        Refuse,
        Reenter,
        Flood
    }

    Manner public manner;
    address public target;
    bytes public payload;
    uint256 public entered;
    bool public reentrySucceeded;

    function behave(Manner how) external {
        manner = how;
    }

    function aim(address where, bytes calldata data) external {
        (target, payload, entered) = (where, data, 0);
        reentrySucceeded = false;
    }

    function act(address where, bytes calldata data) external payable {
        (bool done, bytes memory result) = where.call{value: msg.value}(data);
        if (!done) {
            assembly ("memory-safe") {
                revert(add(result, 32), mload(result))
            }
        }
    }

    receive() external payable {
        if (manner == Manner.Refuse) revert("no");
        if (manner == Manner.Flood) {
            assembly ("memory-safe") {
                return(0, 1000000)
            }
        }
        if (manner == Manner.Reenter && entered++ == 0) (reentrySucceeded,) = target.call(payload);
    }
}

/// @notice In every role, a hostile recipient is paid once or not at all, and nobody else notices.
contract RecipientsTest is World {
    Hostile internal hostile;
    bytes32 internal pipeline;

    function setUp() public override {
        super.setUp();
        hostile = new Hostile();
        pipeline = settlement.registerPipeline(_adapterPipeline());
        _deposit(1 ether);
        _redeem(_voucher(pipeline, 1_000_000, 1e15));
        _harvest(pipeline);
    }

    function test_Operator() public {
        vm.prank(OPERATOR);
        nodes.setRecipient(node, address(hostile));
        _attack(address(settlement), abi.encodeCall(settlement.claimOperator, (node)), 95e13);
    }

    function test_ArtifactOwner() public {
        vm.prank(ADAPTER_OWNER);
        settlement.setRecipient(address(hostile));
        _attack(address(settlement), abi.encodeCall(settlement.claimOwner, (ADAPTER_OWNER)), 6.5e12);
    }

    function test_Contributor() public {
        vm.prank(ALICE);
        settlement.setRecipient(address(hostile));
        bytes memory call = abi.encodeCall(settlement.claimShare, (DATASET, ALICE, 7_500, _shareProof(0)));
        _attack(address(settlement), call, 0.9e12);
    }

    function test_ContributorOfCredits() public {
        address[] memory people = new address[](1);
        people[0] = ALICE;
        uint256[] memory amounts = new uint256[](1);
        amounts[0] = 0.5e12;
        bytes32[] memory leaves = Tree.leavesOf(people, amounts);
        vm.prank(OPERATOR);
        credits.post(node, DATASET, 1, Tree.root(leaves), "leaves", 0.5e12, 0.8e12);
        vm.warp(block.timestamp + TIMELOCK);
        credits.activate(node, DATASET);
        vm.prank(ALICE);
        settlement.setRecipient(address(hostile));
        bytes memory call =
            abi.encodeCall(credits.claim, (node, DATASET, ALICE, 0.5e12, Tree.proof(leaves, 0), 7_500, _shareProof(0)));
        _attack(address(credits), call, 0.5e12);
    }

    function test_Treasury() public {
        vm.prank(address(timelock));
        settlement.setTreasury(address(hostile));
        bytes32[] memory list = new bytes32[](2);
        (list[0], list[1]) = (node, node);
        _attack(address(settlement), abi.encodeCall(settlement.claimProtocol, (list)), 5e13);
    }

    function test_TreasuryOfSlashedStake() public {
        vm.prank(address(timelock));
        settlement.setTreasury(address(hostile));
        vm.prank(address(anchor));
        nodes.slash(node, STRANGER);
        _attack(address(nodes), abi.encodeCall(nodes.claim, (address(0))), 0.4 ether);
    }

    function test_Challenger() public {
        vm.prank(address(anchor));
        nodes.slash(node, address(hostile));
        _attack(address(nodes), abi.encodeCall(nodes.claim, (address(hostile))), 0.1 ether);
    }

    function test_Payer() public {
        vm.deal(address(hostile), 1 ether);
        hostile.act{value: 100}(address(settlement), abi.encodeCall(settlement.deposit, (node)));
        hostile.act(address(settlement), abi.encodeCall(settlement.thaw, (node, 100)));
        vm.warp(block.timestamp + ESCROW_THAW);
        vm.deal(address(hostile), 0);
        bytes memory withdraw = abi.encodeCall(settlement.withdraw, (node));
        _attackAs(address(settlement), withdraw, abi.encodeCall(hostile.act, (address(settlement), withdraw)), 100);
    }

    function test_NodeOwner() public {
        bytes32 own = _registerNode(address(hostile), OTHER_NODE_KEY, PAYOUT);
        hostile.act(address(nodes), abi.encodeCall(nodes.deregister, (own)));
        vm.warp(block.timestamp + STAKE_THAW);
        vm.deal(address(hostile), 0);
        bytes memory withdraw = abi.encodeCall(nodes.withdrawStake, (own));
        _attackAs(address(nodes), withdraw, abi.encodeCall(hostile.act, (address(nodes), withdraw)), MIN_STAKE);
    }

    function test_LicenceSeller() public {
        bytes32 model = keccak256("licensed");
        _registerArtifact(address(hostile), model, Kind.Base, 0, _terms(0));
        vm.prank(address(hostile));
        artifacts.setPolicy(model, Scope.Use, Mode.Licence, 7, 1);
        hostile.behave(Hostile.Manner.Refuse);
        artifacts.buy{value: 7}(model, Scope.Use, "buyer", 7, 1);
        _attack(address(artifacts), abi.encodeCall(artifacts.claim, (address(hostile))), 7);
    }

    /// @dev While one is being paid, no other entrance of the settlement moves money either.
    function test_ReenteringAnotherEntranceIsRefusedToo() public {
        vm.prank(OPERATOR);
        nodes.setRecipient(node, address(hostile));
        hostile.behave(Hostile.Manner.Reenter);
        hostile.aim(address(settlement), abi.encodeCall(settlement.claimOwner, (ADAPTER_OWNER)));
        settlement.claimOperator(node);
        isTrue(!hostile.reentrySucceeded(), "one at a time");
        equal(ADAPTER_OWNER.balance, 0, "untouched");
        settlement.claimOwner(ADAPTER_OWNER);
    }

    function _attack(address target, bytes memory call, uint256 due) private {
        _attackAs(target, call, abi.encodeCall(hostile.act, (target, call)), due);
    }

    /// @dev Refusing reverts and keeps the claim; re-entering, with a flood or not, is paid exactly what was due.
    function _attackAs(address target, bytes memory again, bytes memory act, uint256 due) private {
        uint256 before = address(hostile).balance;
        hostile.behave(Hostile.Manner.Refuse);
        (bool done, bytes memory reason) = address(hostile).call(act);
        isTrue(!done, "a refused payment reverts");
        equal(bytes32(bytes4(reason)), bytes32(Coin.PaymentRefused.selector), "and says so");
        uint256 held = target.balance + (target == address(credits) ? address(settlement).balance : 0);
        hostile.behave(Hostile.Manner.Reenter);
        hostile.aim(target, again);
        (done,) = address(hostile).call(act);
        isTrue(done && hostile.entered() != 0, "paid, and tried again while being paid");
        isTrue(!hostile.reentrySucceeded(), "the second attempt failed");
        equal(address(hostile).balance - before, due, "paid once");
        uint256 left = target.balance + (target == address(credits) ? address(settlement).balance : 0);
        equal(held - left, due, "out of the contract exactly that");
        hostile.behave(Hostile.Manner.Accept);
        (done,) = address(hostile).call(act);
        isTrue(!done, "and never again");
    }

    function test_AFloodOfReturnDataCostsItsSenderOnly() public {
        vm.prank(OPERATOR);
        nodes.setRecipient(node, address(hostile));
        hostile.behave(Hostile.Manner.Flood);
        settlement.claimOperator(node);
        equal(address(hostile).balance, 95e13, "paid; nothing of the flood was copied");
    }
}
