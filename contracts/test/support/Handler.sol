// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {Settlement} from "../../src/Settlement.sol";
import {CreditPool} from "../../src/interfaces/ISettlement.sol";
import {Pipeline, Receipt, Voucher} from "../../src/lib/Types.sol";
import {Escrow} from "../../src/settlement/Escrow.sol";
import {Revenue} from "../../src/settlement/Revenue.sol";
import {Tree} from "./Tree.sol";
import {World} from "./World.sol";
import {vm} from "./Vm.sol";

/// @notice Random actors over the deployed contracts, beside a model of what each escrow must hold. One payer runs a
/// node of its own. A call that breaks the model names it in `broken`; a call that reverts leaves no trace.
contract Handler is World {
    struct Wallet {
        address payer;
        uint256 key;
    }

    /// @dev A channel as its accepted vouchers tell it.
    struct Model {
        uint64 tokens;
        uint128 compute;
        uint256 paid;
    }

    string public broken;
    bytes32[2] public nodeIds;
    bytes32[2] public pipelineIds;
    address[2] public payers;
    Wallet[3] internal wallets;

    mapping(address payer => mapping(bytes32 node => uint256)) public escrowModel;
    mapping(bytes32 channel => Model) public channels;
    mapping(bytes32 node => uint256) public creditsPaid;
    uint256 public redeemed;
    uint256 public claimed;
    uint256 public stakeIn;
    uint256 public stakeOut;

    mapping(bytes32 node => uint256[2]) private _posted;
    mapping(bytes32 node => uint256[2]) private _inForce;
    uint64 private _seq;

    constructor() {
        setUp();
        payers = [vm.addr(PAYER_KEY), vm.addr(0xB0B)];
        wallets[0] = Wallet(payers[0], PAYER_KEY);
        wallets[1] = Wallet(payers[0], SIGNER_KEY);
        wallets[2] = Wallet(payers[1], 0xB0B);
        _authorize(payers[0], SIGNER_KEY);
        nodeIds = [node, _registerNode(payers[1], OTHER_NODE_KEY, address(0x0711))];
        stakeIn = 2 * MIN_STAKE;
        pipelineIds = [settlement.registerPipeline(_adapterPipeline()), settlement.registerPipeline(_mixPipeline())];
        vm.deal(payers[0], 1e9 ether);
        vm.deal(payers[1], 1e9 ether);
        vm.deal(OPERATOR, 1e9 ether);
    }

    function actions() external pure returns (bytes4[] memory list) {
        list = new bytes4[](21);
        list[0] = this.deposit.selector;
        list[1] = this.thaw.selector;
        list[2] = this.cancelThaw.selector;
        list[3] = this.withdraw.selector;
        list[4] = this.move.selector;
        list[5] = this.redeem.selector;
        list[6] = this.redeemOlder.selector;
        list[7] = this.redeemBatch.selector;
        list[8] = this.collect.selector;
        list[9] = this.harvest.selector;
        list[10] = this.claimEarnings.selector;
        list[11] = this.claimShares.selector;
        list[12] = this.postCredits.selector;
        list[13] = this.decideCredits.selector;
        list[14] = this.claimCredits.selector;
        list[15] = this.wait.selector;
        list[16] = this.changeProtocolBps.selector;
        list[17] = this.stake.selector;
        list[18] = this.equivocate.selector;
        list[19] = this.passOn.selector;
        list[20] = this.redeemForAnother.selector;
    }

    // ---- escrow

    function deposit(uint256 who, uint256 where, uint256 amount) external {
        amount = bound(amount, 1, amount % 3 == 0 ? 1e10 : 10 ether);
        (address p, bytes32 n) = (payers[who % 2], nodeIds[where % 2]);
        vm.prank(p);
        settlement.deposit{value: amount}(n);
        escrowModel[p][n] += amount;
    }

    function thaw(uint256 who, uint256 where, uint256 amount) external {
        (address p, bytes32 n) = (payers[who % 2], nodeIds[where % 2]);
        Escrow.Account memory a = settlement.accountOf(p, n);
        vm.prank(p);
        settlement.thaw(n, bound(amount, 1, a.balance - a.thawing));
    }

    function cancelThaw(uint256 who, uint256 where) external {
        vm.prank(payers[who % 2]);
        settlement.cancelThaw(nodeIds[where % 2]);
    }

    function withdraw(uint256 who, uint256 where, uint256 patience) external {
        (address p, bytes32 n) = (payers[who % 2], nodeIds[where % 2]);
        uint256 end = settlement.accountOf(p, n).thawEnd;
        _waitFor(end, patience);
        uint256 before = p.balance;
        vm.prank(p);
        uint256 amount = settlement.withdraw(n);
        if (block.timestamp < end) broken = "escrow left before the end of its thaw";
        if (p.balance - before != amount) broken = "a withdrawal paid another amount";
        escrowModel[p][n] -= amount;
    }

    function move(uint256 who, uint256 where, uint256 amount) external {
        address p = payers[who % 2];
        (bytes32 from, bytes32 to) = (nodeIds[where % 2], nodeIds[(where + 1) % 2]);
        Escrow.Account memory a = settlement.accountOf(p, from);
        _waitFor(a.thawEnd, amount);
        amount = bound(amount, 1, a.thawing);
        vm.prank(p);
        settlement.move(from, to, amount);
        if (block.timestamp < a.thawEnd) broken = "escrow moved before the end of its thaw";
        escrowModel[p][from] -= amount;
        escrowModel[p][to] += amount;
    }

    // ---- vouchers

    function redeem(uint256 who, uint256 where, uint256 what, uint64 tokens, uint96 compute) external {
        (Voucher memory v, bytes memory s, bytes32 id) = _next(
            who,
            where,
            what,
            uint64(bound(tokens, 0, 1e9)),
            uint128(bound(compute, 0, compute % 7 == 0 ? 20 ether : 1e15))
        );
        _accepted(v, id, _present(v, s));
    }

    /// @dev Older vouchers, and ones of which one amount grew and the other fell, change nothing but open debts.
    function redeemOlder(uint256 who, uint256 where, uint256 what, uint64 tokens, uint128 compute) external {
        Wallet memory w = wallets[who % 3];
        bytes32 id = _channel(w, where, what);
        Model memory m = channels[id];
        tokens = uint64(bound(tokens, 0, m.tokens));
        compute = compute % 2 == 0 ? m.compute + 1 : uint128(bound(compute, 0, m.compute));
        if (tokens == m.tokens && compute > m.compute) return;
        Voucher memory v = Voucher(w.payer, nodeIds[where % 2], pipelineIds[what % 2], tokens, compute, 0);
        _paidOnly(v, id, _present(v, _signVoucher(w.key, v)));
    }

    function redeemBatch(uint256 where, uint256 what, uint64 tokens, uint96 compute) external {
        Voucher[] memory vs = new Voucher[](3);
        bytes[] memory ss = new bytes[](3);
        bytes32[3] memory ids;
        uint256 expected;
        for (uint256 i; i < 3; ++i) {
            uint64 t = uint64(bound(tokens, 1, 1e6)) * uint64(i + 1);
            (vs[i], ss[i], ids[i]) = _next(i, where, what, t, uint128(bound(compute, 0, 1e12)));
        }
        ss[1] = hex"1234";
        vm.prank(_keyOf(nodeIds[where % 2]));
        uint256 paid = settlement.redeemMany(new Pipeline[](0), vs, ss);
        for (uint256 i; i < 3; i += 2) {
            uint256 due = _due(ids[i], vs[i]);
            uint256 there = escrowModel[vs[i].payer][vs[i].node];
            uint256 part = due < there ? due : there;
            expected += part;
            _accepted(vs[i], ids[i], part);
        }
        if (paid != expected) broken = "a batch paid another amount than its items";
    }

    /// @dev Whoever else presents a voucher, its payer above all: good signatures or not, nothing may move.
    function redeemForAnother(uint256 who, uint256 where, uint256 what, uint64 tokens, uint96 compute) external {
        (Voucher memory v, bytes memory s,) = _next(who, where, what, uint64(bound(tokens, 0, 1e9)), compute);
        Voucher[] memory vs = new Voucher[](1);
        bytes[] memory ss = new bytes[](1);
        (vs[0], ss[0]) = (v, s);
        address[4] memory others = [v.payer, vm.addr(wallets[who % 3].key), STRANGER, _keyOf(nodeIds[(where + 1) % 2])];
        address caller = others[compute % 4];
        if (nodes.mayActFor(v.node, caller)) return;
        vm.startPrank(caller);
        if (settlement.redeemMany(new Pipeline[](0), vs, ss) != 0) broken = "a voucher was redeemed by another";
        try settlement.redeem(v, s) {
            broken = "a voucher was redeemed by another";
        } catch {}
        vm.stopPrank();
    }

    function collect(uint256 who, uint256 where, uint256 what) external {
        Wallet memory w = wallets[who % 3];
        Model memory m = channels[_channel(w, where, what)];
        (bytes32 n, bytes32 p) = (nodeIds[where % 2], pipelineIds[what % 2]);
        uint256 paid = settlement.collect(w.payer, vm.addr(w.key), n, p);
        _paidOnly(Voucher(w.payer, n, p, m.tokens, m.compute, 0), _channel(w, where, what), paid);
    }

    // ---- revenue

    function harvest(uint256 where, uint256 what) external {
        Revenue.Source[] memory sources = new Revenue.Source[](1);
        sources[0] = Revenue.Source(nodeIds[where % 2], pipelineIds[what % 2]);
        settlement.harvestMany(sources);
    }

    function claimEarnings(uint256 which) external {
        address[4] memory owners = [BASE_OWNER, ADAPTER_OWNER, DATA_OWNER, STRANGER];
        if (which % 6 < 4) {
            claimed += settlement.claimOwner(owners[which % 6]);
        } else if (which % 6 == 4) {
            claimed += settlement.claimOperator(nodeIds[which / 6 % 2]);
        } else {
            bytes32[] memory list = new bytes32[](2);
            (list[0], list[1]) = (nodeIds[0], nodeIds[1]);
            claimed += settlement.claimProtocol(list);
        }
    }

    function claimShares(uint256 who) external {
        claimed += who % 2 == 0
            ? settlement.claimShare(DATASET, ALICE, 7_500, _shareProof(0))
            : settlement.claimShare(DATASET, BOB, 2_500, _shareProof(1));
    }

    // ---- credits

    function postCredits(uint256 where, uint256 alice, uint256 bob, uint256 through) external {
        bytes32 n = nodeIds[where % 2];
        (uint256[2] memory amounts, uint128 until) = _draft(n, alice, bob, through);
        (bytes32 root,) = _creditTree(amounts);
        uint64 epoch = credits.activeOf(n, DATASET).epoch + 1;
        vm.prank(nodes.nodeOf(n).key);
        credits.post(n, DATASET, epoch, root, 0, uint128(amounts[0] + amounts[1]), until);
        _posted[n] = amounts;
    }

    /// @dev Now and then the leaves and their total exceed the pool, or the reach does: the contract must refuse.
    function _draft(bytes32 n, uint256 alice, uint256 bob, uint256 through)
        private
        view
        returns (uint256[2] memory amounts, uint128 until)
    {
        CreditPool memory pool = settlement.creditPool(n, DATASET);
        uint256 free = pool.accrued - pool.settled;
        uint256 toAlice = bound(alice, 0, free);
        uint256 toBob = bound(bob, 0, bob % 4 == 0 ? 2 * free : free - toAlice);
        amounts = [_inForce[n][0] + toAlice, _inForce[n][1] + toBob];
        until = through % 8 == 0 ? pool.accrued + 1 : pool.accrued - uint128(bound(through, 0, free / 4));
    }

    function decideCredits(uint256 where, uint256 how) external {
        bytes32 n = nodeIds[where % 2];
        if (how % 8 == 0) {
            vm.prank(DATA_OWNER);
            credits.veto(n, DATASET);
        } else if (how % 8 == 1) {
            credits.lapse(n, DATASET);
        } else {
            _waitFor(credits.pendingOf(n, DATASET).activatesAt, how);
            credits.activate(n, DATASET);
            _inForce[n] = _posted[n];
        }
    }

    function claimCredits(uint256 where, uint256 who) external {
        bytes32 n = nodeIds[where % 2];
        (, bytes32[] memory leaves) = _creditTree(_inForce[n]);
        (address account, uint256 bps) = who % 2 == 0 ? (ALICE, uint256(7_500)) : (BOB, 2_500);
        uint256 amount = credits.claim(
            n, DATASET, account, _inForce[n][who % 2], Tree.proof(leaves, who % 2), bps, _shareProof(who % 2)
        );
        creditsPaid[n] += amount;
        claimed += amount;
    }

    // ---- the rest of the world

    function wait(uint256 time) external {
        vm.warp(block.timestamp + bound(time, 1, 9 days));
    }

    function changeProtocolBps(uint256 bps) external {
        vm.prank(address(timelock));
        settlement.setProtocolBps(uint16(bound(bps, 0, 1_000)));
    }

    function stake(uint256 where, uint256 how, uint256 amount) external {
        bytes32 n = nodeIds[where % 2];
        address owner = where % 2 == 0 ? OPERATOR : payers[1];
        amount = bound(amount, 1, 1 ether);
        if (how % 3 == 2) _waitFor(nodes.nodeOf(n).stake.thawEnd, amount);
        vm.prank(owner);
        if (how % 3 == 0) {
            nodes.addStake{value: amount}(n);
            stakeIn += amount;
        } else if (how % 3 == 1) {
            nodes.thawStake(n, amount);
        } else {
            uint256 before = owner.balance;
            nodes.withdrawStake(n);
            stakeOut += owner.balance - before;
        }
    }

    function equivocate(uint256 where, uint256 how) external {
        if (how % 4 != 0) {
            address account = how % 4 == 1 ? address(0) : STRANGER;
            stakeOut += nodes.claim(account);
            return;
        }
        Receipt memory a;
        a.node = nodeIds[where % 2];
        a.seq = ++_seq;
        a.finishedAt = uint64(block.timestamp);
        uint256 key = where % 2 == 0 ? NODE_KEY : OTHER_NODE_KEY;
        bytes memory first = _sign(key, hasher.receipt(a));
        Receipt memory b = a;
        b = abi.decode(abi.encode(a), (Receipt));
        b.compute = 1;
        bytes memory second = _sign(key, hasher.receipt(b));
        vm.prank(STRANGER);
        anchor.challengeEquivocation(a, first, b, second);
    }

    function passOn(uint256 who) external {
        address owner = artifacts.ownerOf(adapter);
        address next = who % 2 == 0 ? ADAPTER_OWNER : STRANGER;
        vm.prank(owner);
        artifacts.transferOwnership(adapter, next);
        vm.prank(next);
        artifacts.acceptOwnership(adapter);
    }

    // ---- what the invariants read

    /// @notice Whether every channel's accepted amounts and debt are the model's.
    function channelsAgree() external view returns (bool) {
        for (uint256 i; i < 12; ++i) {
            Wallet memory w = wallets[i % 3];
            (bytes32 n, bytes32 p) = (nodeIds[i / 3 % 2], pipelineIds[i / 6]);
            Model memory m = channels[_channel(w, i / 3, i / 6)];
            (Settlement.Channel memory c, Settlement.Amounts memory debt) =
                settlement.channelOf(w.payer, vm.addr(w.key), n, p);
            uint256 owed = m.compute + settlement.royaltiesAfter(p, m.tokens) - m.paid;
            if (c.tokens != m.tokens || c.compute != m.compute) return false;
            if (uint256(debt.compute) + debt.royalties != owed || c.indebted != (owed != 0)) return false;
        }
        return true;
    }

    function escrowAgrees() external view returns (bool) {
        for (uint256 i; i < 4; ++i) {
            (address p, bytes32 n) = (payers[i % 2], nodeIds[i / 2]);
            if (settlement.accountOf(p, n).balance != escrowModel[p][n]) return false;
        }
        return true;
    }

    /// @notice What lies in escrow, added up from what the settlement says of itself.
    function escrowed() external view returns (uint256 sum) {
        for (uint256 i; i < 4; ++i) {
            sum += settlement.accountOf(payers[i % 2], nodeIds[i / 2]).balance;
        }
    }

    /// @notice What was redeemed and not claimed yet, added up from what the settlement says of itself.
    function unclaimed() external view returns (uint256 sum) {
        for (uint256 i; i < 4; ++i) {
            sum += _unharvested(nodeIds[i % 2], pipelineIds[i / 2]);
        }
        for (uint256 i; i < 2; ++i) {
            (uint128 operator, uint128 protocol) = settlement.ledgerOf(nodeIds[i]);
            CreditPool memory pool = settlement.creditPool(nodeIds[i], DATASET);
            sum += uint256(operator) + protocol + (pool.accrued - pool.settled) + pool.credited;
        }
        sum += settlement.claimable(BASE_OWNER) + settlement.claimable(ADAPTER_OWNER);
        sum += settlement.claimable(DATA_OWNER) + settlement.claimable(STRANGER);
        (uint128 total, uint128 paid) = settlement.sharePoolOf(DATASET, Tree.root(shareLeaves));
        sum += total - paid;
    }

    function creditsAreCovered() external view returns (bool) {
        for (uint256 i; i < 2; ++i) {
            CreditPool memory pool = settlement.creditPool(nodeIds[i], DATASET);
            if (pool.settled > pool.accrued || creditsPaid[nodeIds[i]] + pool.credited > pool.settled) return false;
        }
        return true;
    }

    function stakeObligations() external view returns (uint256 sum) {
        for (uint256 i; i < 2; ++i) {
            sum += nodes.nodeOf(nodeIds[i]).stake.staked + uint256(nodes.nodeOf(nodeIds[i]).stake.thawing);
        }
        sum += nodes.claimable(address(0)) + nodes.claimable(STRANGER);
    }

    function balances() external view returns (uint256 ofSettlement, uint256 ofNodes) {
        return (address(settlement).balance, address(nodes).balance);
    }

    /// @dev Half of the time lets a delay pass first, so that what waits for it is not always refused.
    function _waitFor(uint256 end, uint256 patience) private {
        if (patience % 2 == 0 && block.timestamp < end) vm.warp(end);
    }

    function _unharvested(bytes32 n, bytes32 p) private view returns (uint256 rest) {
        (uint128 accrued, uint128 harvested) = settlement.accumulatorOf(n, p);
        (Settlement.Header memory header, Settlement.Part[] memory parts) = settlement.pipelineOf(p);
        rest = accrued;
        for (uint256 i; i < parts.length; ++i) {
            rest -= uint256(harvested) * parts[i].numerator / header.numeratorSum;
        }
    }

    function _next(uint256 who, uint256 where, uint256 what, uint64 tokens, uint128 compute)
        private
        view
        returns (Voucher memory v, bytes memory s, bytes32 id)
    {
        Wallet memory w = wallets[who % 3];
        id = _channel(w, where, what);
        Model memory m = channels[id];
        v = Voucher(
            w.payer, nodeIds[where % 2], pipelineIds[what % 2], m.tokens + tokens, m.compute + compute, bytes32(0)
        );
        s = _signVoucher(w.key, v);
    }

    function _due(bytes32 id, Voucher memory v) private view returns (uint256) {
        return v.cumulativeCompute + settlement.royaltiesAfter(v.pipelineId, v.cumulativeTokens) - channels[id].paid;
    }

    /// @dev Thawing or not, a voucher is paid as far as escrow with its node reaches, and out of nothing else.
    function _accepted(Voucher memory v, bytes32 id, uint256 paid) private {
        (channels[id].tokens, channels[id].compute) = (v.cumulativeTokens, v.cumulativeCompute);
        _paidOnly(v, id, paid);
    }

    function _paidOnly(Voucher memory v, bytes32 id, uint256 paid) private {
        uint256 due = _due(id, Voucher(v.payer, v.node, v.pipelineId, channels[id].tokens, channels[id].compute, 0));
        uint256 there = escrowModel[v.payer][v.node];
        if (paid != (due < there ? due : there)) broken = "a voucher was not paid as far as escrow reaches";
        escrowModel[v.payer][v.node] -= paid;
        channels[id].paid += paid;
        redeemed += paid;
    }

    function _channel(Wallet memory w, uint256 where, uint256 what) private pure returns (bytes32) {
        return keccak256(abi.encode(w.payer, w.key, where % 2, what % 2));
    }

    function _creditTree(uint256[2] memory amounts) private pure returns (bytes32 root, bytes32[] memory leaves) {
        address[] memory people = new address[](2);
        (people[0], people[1]) = (ALICE, BOB);
        uint256[] memory list = new uint256[](2);
        (list[0], list[1]) = (amounts[0], amounts[1]);
        leaves = Tree.leavesOf(people, list);
        root = Tree.root(leaves);
    }
}
