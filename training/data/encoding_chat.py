"""One shard of conversations or of preference pairs: from messages to files, in one process."""

import json
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.data.chat import ChatTemplate, EncodedConversation
from training.data.encoding import ShardTask, batches, commit_shard, encoded_shard, loaded_tokenizer
from training.data.messages import BadRecord
from training.data.readers.rows import Fault, Reason, sample_of
from training.data.records import Quarantined
from training.data.shard_files import EncodedRecord
from training.data.tokenizer import Tokenizer


def encode_conversations(task: ShardTask, keep_alive: Callable[[], None]) -> None:
    """Write a shard of conversations; nothing is done if it is there already."""
    template = loaded_template(task.tokenizer)
    _encode(task, keep_alive, lambda record: (template.encode_conversation(record),))


def encode_preferences(task: ShardTask, keep_alive: Callable[[], None]) -> None:
    """Write a shard of pairs, of each the chosen and then the rejected answer; nothing is done if it is there."""
    template = loaded_template(task.tokenizer)
    _encode(task, keep_alive, template.encode_preference)


def _encode(
    task: ShardTask,
    keep_alive: Callable[[], None],
    encode: Callable[[dict[str, object]], tuple[EncodedConversation, ...]],
) -> None:
    if encoded_shard(task) is not None:
        return
    tokenizer = loaded_tokenizer(task.tokenizer, task.end_of_document_token)
    quarantined: list[dict[str, str]] = []

    def records() -> Iterator[EncodedRecord]:
        for ids, contents in batches(task, keep_alive):
            for record_id, content in zip(ids, contents, strict=True):
                try:
                    encoded = encode(json.loads(content))
                except BadRecord as error:
                    fault = Fault(reason=Reason.bad_record, detail=str(error), sample=sample_of(content))
                    quarantined.append(Quarantined(id=record_id, fault=fault).as_json())
                    continue
                yield from (_record(record_id, messages, tokenizer) for messages in encoded)

    commit_shard(task, records(), quarantined, vocab_size=tokenizer.vocab_size, has_targets=True)


def _record(record_id: str, messages: EncodedConversation, tokenizer: Tokenizer) -> EncodedRecord:
    return EncodedRecord(
        id=record_id,
        token_ids=np.array(messages.token_ids, dtype=np.uint32),
        is_target=np.array(messages.is_target, dtype=bool),
        num_bytes=len(tokenizer.spelled(messages.token_ids).encode()),
    )


@lru_cache(maxsize=1)
def loaded_template(directory: Path) -> ChatTemplate:
    """Return a tokenizer's chat template, read once per process."""
    return ChatTemplate.load(directory)
