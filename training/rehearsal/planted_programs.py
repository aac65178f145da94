"""Mistakes in what ranks run: collectives, transfers, schedules. No torch."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from training.parallel.schedule import Kind
from training.rehearsal.grid import GroupKind
from training.rehearsal.mistake import Mistake
from training.rehearsal.operations import Collective, CollectiveKind, Compute, Operation, Program, Receive, Send
from training.rehearsal.program import Phase, Texts
from training.rehearsal.rehearsal import Rehearsal

_REDUCTIONS = (CollectiveKind.reduce_scatter, CollectiveKind.all_reduce)


def _victim(rehearsal: Rehearsal) -> int:
    """Return a rank in the middle of the job."""
    return rehearsal.plan.grid.world_size * 2 // 3


def _find(text: Program, is_it: Callable[[Operation], bool], *, after: int = 0) -> int | None:
    return next((place for place in range(after, len(text)) if is_it(text[place])), None)


def _is_reduction(op: Operation) -> bool:
    """Return whether it sums gradients over the replicas; of a model that is, not of a norm."""
    if not isinstance(op, Collective) or op.group is not GroupKind.shards:
        return False
    return op.kind in _REDUCTIONS and op.numel > 1


def _on_one_rank(
    rehearsal: Rehearsal, change: Callable[[Program, int], tuple[Program, Operation] | None], phase: Phase = Phase.step
) -> Mistake | None:
    """Return a mistake that one rank makes at its first reduction of gradients."""
    rank = _victim(rehearsal)
    text = rehearsal.phases[phase].of(rank)
    place = _find(text, _is_reduction)
    changed = None if place is None else change(text, place)
    if changed is None:
        return None
    wrong, op = changed
    return Mistake(rehearsal=rehearsal.with_text(phase, rank, wrong), rank=rank, words=_words(op))


def _words(op: Operation) -> tuple[str, ...]:
    return (op.about,) if isinstance(op, Collective) and op.about else (str(op),)


def _replaced(text: Program, place: int, *instead: Operation) -> Program:
    return (*text[:place], *instead, *text[place + 1 :])


def _order_swapped(rehearsal: Rehearsal) -> Mistake | None:
    def change(text: Program, place: int) -> tuple[Program, Operation] | None:
        def is_another(op: Operation) -> bool:
            return isinstance(op, Collective) and op.group is GroupKind.shards and op != text[place]

        other = _find(text, is_another, after=place)
        if other is None:
            return None
        swapped = _replaced(_replaced(text, place, text[other]), other, text[place])
        return swapped, text[other]

    return _on_one_rank(rehearsal, change)


def _collective_missing(rehearsal: Rehearsal) -> Mistake | None:
    return _on_one_rank(rehearsal, lambda text, place: (_replaced(text, place), text[place]))


def _collective_twice(rehearsal: Rehearsal) -> Mistake | None:
    return _on_one_rank(rehearsal, lambda text, place: (_replaced(text, place, text[place], text[place]), text[place]))


def _changed(**values: object) -> Callable[[Program, int], tuple[Program, Operation]]:
    def change(text: Program, place: int) -> tuple[Program, Operation]:
        wrong = replace(text[place], **values)
        return _replaced(text, place, wrong), wrong

    return change


def _wrong_size(rehearsal: Rehearsal) -> Mistake | None:
    def change(text: Program, place: int) -> tuple[Program, Operation]:
        op = text[place]
        assert isinstance(op, Collective)
        return _changed(numel=op.numel - 1)(text, place)

    return _on_one_rank(rehearsal, change)


def _wrong_dtype(rehearsal: Rehearsal) -> Mistake | None:
    return _on_one_rank(rehearsal, _changed(dtype="float16"))


def _wrong_group(rehearsal: Rehearsal) -> Mistake | None:
    group = GroupKind.pipeline if rehearsal.plan.grid.pipeline > 1 else GroupKind.world
    return _on_one_rank(rehearsal, _changed(group=group))


def _wrong_kind(rehearsal: Rehearsal) -> Mistake | None:
    return _on_one_rank(rehearsal, _changed(kind=CollectiveKind.all_gather))


def _wrong_root(rehearsal: Rehearsal) -> Mistake | None:
    rank = _victim(rehearsal)
    text = rehearsal.phases[Phase.start].of(rank)
    place = _find(text, lambda op: isinstance(op, Collective) and op.root == 0 and op.group is GroupKind.shards)
    if place is None:
        return None
    wrong, op = _changed(root=1)(text, place)
    return Mistake(rehearsal=rehearsal.with_text(Phase.start, rank, wrong), rank=rank, words=_words(op))


def _groups_made_in_another_order(rehearsal: Rehearsal) -> Mistake | None:
    rank = _victim(rehearsal)
    text = rehearsal.phases[Phase.start].of(rank)
    first = _find(text, lambda op: isinstance(op, Collective) and op.kind is CollectiveKind.new_group)
    if first is None or first + 1 == len(text):
        return None
    second = text[first + 1]
    if not isinstance(second, Collective) or second.kind is not CollectiveKind.new_group:
        return None
    wrong = _replaced(_replaced(text, first, second), first + 1, text[first])
    return Mistake(rehearsal=rehearsal.with_text(Phase.start, rank, wrong), rank=rank, words=(second.members,))


def _save_without_vote(rehearsal: Rehearsal) -> Mistake | None:
    rank = _victim(rehearsal)
    if rehearsal.plan.grid.world_size == 1:
        return None
    text = rehearsal.phases[Phase.save].of(rank)
    wrong = rehearsal.with_text(Phase.save, rank, text[:-1])
    return Mistake(rehearsal=wrong, rank=rank, words=("all ranks succeeded",))


def _on_one_transfer(
    rehearsal: Rehearsal, is_it: Callable[[Operation], bool], change: Callable[[Operation], Iterable[Operation]]
) -> Mistake | None:
    rank = _victim(rehearsal)
    text = rehearsal.phases[Phase.step].of(rank)
    place = _find(text, is_it)
    if place is None:
        return None
    wrong = _replaced(text, place, *change(text[place]))
    op = text[place]
    assert isinstance(op, Send | Receive)
    return Mistake(rehearsal=rehearsal.with_text(Phase.step, rank, wrong), rank=rank, words=(str(op.carries),))


def _send_missing(rehearsal: Rehearsal) -> Mistake | None:
    return _on_one_transfer(rehearsal, lambda op: isinstance(op, Send), lambda _op: ())


def _transfer_of_another_size(rehearsal: Rehearsal) -> Mistake | None:
    def shorter(op: Operation) -> tuple[Operation]:
        assert isinstance(op, Receive)
        return (replace(op, numel=op.numel // 2),)

    return _on_one_transfer(rehearsal, lambda op: isinstance(op, Receive), shorter)


def _receives_swapped(rehearsal: Rehearsal) -> Mistake | None:
    rank = _victim(rehearsal)
    text = rehearsal.phases[Phase.step].of(rank)
    first = _find(text, lambda op: isinstance(op, Receive))
    if first is None:
        return None
    second = _find(text, lambda op: isinstance(op, Receive), after=first + 1)
    if second is None:
        return None
    wrong = _replaced(_replaced(text, first, text[second]), second, text[first])
    return Mistake(rehearsal=rehearsal.with_text(Phase.step, rank, wrong), rank=rank, words=(str(text[second]),))


def _of_stage(
    rehearsal: Rehearsal, pipeline_stage: int, change: Callable[[Program], Program | None], words: tuple[str, ...]
) -> Mistake | None:
    """Return a mistake that all ranks of a pipeline stage make, so that every collective still fits."""
    texts = rehearsal.phases[Phase.step]
    ranks = rehearsal.plan.pipeline_stage_ranks(pipeline_stage)
    numbers = sorted(set(texts.text_of_rank[ranks].tolist()))
    changed = {number: change(texts.texts[number]) for number in numbers}
    if any(text is None for text in changed.values()):
        return None
    whole = tuple(changed.get(number) or text for number, text in enumerate(texts.texts))
    phases = {**rehearsal.phases, Phase.step: Texts(whole, texts.text_of_rank)}
    return Mistake(rehearsal=replace(rehearsal, phases=phases), rank=ranks.start, words=words)


def _schedule_deadlock(rehearsal: Rehearsal) -> Mistake | None:
    """A pipeline stage waits for a gradient before it sends the activation which that gradient is made from."""
    if rehearsal.plan.grid.pipeline == 1:
        return None

    def change(text: Program) -> Program | None:
        back = _find(text, lambda op: isinstance(op, Receive) and op.carries.kind is Kind.backward)
        if back is None:
            return None
        op = text[back]
        assert isinstance(op, Receive)

        def makes_it(sent: Operation) -> bool:
            return (
                isinstance(sent, Send)
                and sent.carries.kind is Kind.forward
                and sent.carries.micro_batch == op.carries.micro_batch
                and sent.carries.chunk == op.carries.chunk - 1
            )

        sent = _find(text, makes_it)
        if sent is None or sent > back:
            return None
        return (*text[:sent], op, *text[sent:back], *text[back + 1 :])

    return _of_stage(rehearsal, 0, change, ("wait for each other",))


def _micro_batch_twice(rehearsal: Rehearsal) -> Mistake | None:
    def change(text: Program) -> Program | None:
        begin = _find(text, lambda op: isinstance(op, Compute))
        if begin is None:
            return None
        end = _find(text, lambda op: isinstance(op, Compute | Send | Receive), after=begin + 1)
        return (*text[:end], *text[begin:end], *text[end:])

    return _of_stage(rehearsal, 0, change, ("twice", "0F0"))


def _backward_before_forward(rehearsal: Rehearsal) -> Mistake | None:
    last = rehearsal.plan.grid.pipeline - 1
    chunk = len(rehearsal.plan.parts) - 1

    def change(text: Program) -> Program | None:
        forward = _find(text, lambda op: isinstance(op, Compute) and op.action.chunk == chunk)
        if forward is None:
            return None
        backward = _find(text, lambda op: isinstance(op, Compute) and op.action.kind is Kind.backward)
        assert backward is not None
        return _replaced(_replaced(text, forward, text[backward]), backward, text[forward])

    return _of_stage(rehearsal, last, change, (f"{chunk}B0", f"{chunk}F0", "is not there"))


def _micro_batch_left_out(rehearsal: Rehearsal) -> Mistake | None:
    chunk = len(rehearsal.plan.parts) - 1
    last = rehearsal.plan.accumulation - 1

    def change(text: Program) -> Program | None:
        place = _find(
            text,
            lambda op: (
                isinstance(op, Compute)
                and op.action.kind is Kind.backward
                and (op.action.chunk, op.action.micro_batch) == (chunk, last)
            ),
        )
        return None if place is None else _replaced(text, place)

    return _of_stage(rehearsal, rehearsal.plan.grid.pipeline - 1, change, (f"{chunk}B{last}",))


PROGRAM_MISTAKES: dict[str, Callable[[Rehearsal], Mistake | None]] = {
    "collective_order_swapped": _order_swapped,
    "collective_missing": _collective_missing,
    "collective_twice": _collective_twice,
    "collective_of_another_size": _wrong_size,
    "collective_of_another_dtype": _wrong_dtype,
    "collective_in_another_group": _wrong_group,
    "collective_of_another_kind": _wrong_kind,
    "broadcast_from_another_root": _wrong_root,
    "groups_made_in_another_order": _groups_made_in_another_order,
    "save_without_vote": _save_without_vote,
    "send_missing": _send_missing,
    "transfer_of_another_size": _transfer_of_another_size,
    "receives_swapped": _receives_swapped,
    "schedule_deadlock": _schedule_deadlock,
    "micro_batch_twice": _micro_batch_twice,
    "micro_batch_left_out": _micro_batch_left_out,
    "backward_before_forward": _backward_before_forward,
}
"""Name -> makes the mistake; None where the layout leaves no room for it."""
