"""The encoded bytes of `samples.SAMPLES`, after the header: msgpack, one field a line.

They change only together with `PROTOCOL_VERSION`: an old worker and a new engine must refuse each other, not guess.
"""

# fmt: off
GOLDEN: dict[str, bytes] = {
    "Open": (
        b"\x8a\xa4type\xa4Open"
        b"\xa7session\x07"
        b"\xa5turns\x91\x82"
        b"\xa4role\xa4user"
        b"\xa5parts\x92\x87"
        b"\xa6pixels\x93\xa5uint8\x94\x02\x01\x02\x03\xc4\x0c\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b"
        b"\xactimestamps_s\x92\xcb\x00\x00\x00\x00\x00\x00\x00\x00\xcb?\xd0\x00\x00\x00\x00\x00\x00"
        b"\xa8checksum\x09"
        b"\xa4kind\xa5image"
        b"\xa4size\x92\x03\x04"
        b"\xa6digest\xc4\x01\x05"
        b"\xa8left_out\x00\xb3Wo ist der W\xc3\xbcrfel?"
        b"\xa8sampling\x89"
        b"\xaamax_tokens\x09"
        b"\xabtemperature\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xa5top_k\x03"
        b"\xa5top_p\xcb?\xe8\x00\x00\x00\x00\x00\x00"
        b"\xa5min_p\xcb?\xd0\x00\x00\x00\x00\x00\x00"
        b"\xa4seed\xcf@\x00\x00\x00\x00\x00\x00\x00"
        b"\xa8coupling\xa6gumbel"
        b"\xabvocab_limit\xcd\x03\x00"
        b"\xadend_token_ids\x92\x02\x00"
        b"\xa7pruning\x85"
        b"\xa6method\xa7uniform"
        b"\xa5ratio\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xabearly_layer\x03"
        b"\xb1compact_positions\xc3"
        b"\xa4seed\x04"
        b"\xa8schedule\x82"
        b"\xa4mode"
        b"\xa5turns"
        b"\xafoverlap_prefill\xc2"
        b"\xa6window\x85"
        b"\xa5gamma\x05"
        b"\xa4wait\x02"
        b"\xabpatience_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa5ahead\xc2"
        b"\xa8outcomes\x92\x02\x01"
        b"\xa9committed\x92\x0b\x0c"
        b"\xa5epoch\x03"
        b"\xa6shares\xc2"
    ),
    "VideoContent": (
        b"\x83\xa4type\xacVideoContent"
        b"\xa7session\x07"
        b"\xa7visuals\x91\x87"
        b"\xa6pixels\x93\xa5uint8\x94\x00\x01\x02\x03\xc4\x00"
        b"\xactimestamps_s\x90"
        b"\xa8checksum\xc0"
        b"\xa4kind\xa5video"
        b"\xa4size\x92\x00\x00"
        b"\xa6digest\xc4\x01\x05"
        b"\xa8left_out\x02"
    ),
    "Resume": (
        b"\x85\xa4type\xa6Resume"
        b"\xa7session\x07"
        b"\xa9committed\x92\x05\xcd\x01,"
        b"\xa5epoch\x02"
        b"\xa6window\x85"
        b"\xa5gamma\x05"
        b"\xa4wait\x02"
        b"\xabpatience_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa5ahead\xc2"
        b"\xa8outcomes\x92\x02\x01"
    ),
    "Close": (
        b"\x82\xa4type\xa5Close"
        b"\xa7session\x07"
    ),
    "PruneMask": (
        b"\x87\xa4type\xa9PruneMask"
        b"\xa7session\x07"
        b"\xa4bits\xc4\x02\xa0\x01"
        b"\xacvideo_tokens\x10"
        b"\xa4kept\x03"
        b"\xa6method\xa2uv"
        b"\xa5ratio\xcb?\xe0\x00\x00\x00\x00\x00\x00"
    ),
    "DraftWindow": (
        b"\x8f\xa4type\xabDraftWindow"
        b"\xa7session\x07"
        b"\xa2id\x04"
        b"\xa6parent\x03"
        b"\xa5epoch\x01"
        b"\xa5start\x02"
        b"\xa6tokens\x92\x05\xcd\x01,"
        b"\xacproposal_ids\x93\xa5int32\x92\x02\x02"
        b"\xc4\x10\x05\x00\x00\x00\xff\xff\xff\xff,\x01\x00\x00\x05\x00\x00\x00"
        b"\xaeproposal_probs\x93\xa7float32\x92\x02\x02"
        b"\xc4\x10\x00\x00\x80?\x00\x00\x00\x00\x00\x00@?\x00\x00\x80>"
        b"\xa8draft_ms\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xa7began_s\xcb?\xc0\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
        b"\xa7stopped\x91\x85"
        b"\xa5epoch\x01"
        b"\xa5start\x02"
        b"\xa6tokens\x03"
        b"\xa8draft_ms\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
        b"\xa6beside\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa7adopted\x01"
    ),
    "Prepared": (
        b"\x88\xa4type\xa8Prepared"
        b"\xa7session\x07"
        b"\xa5epoch\x01"
        b"\xa8outcomes\x91\x84"
        b"\xa2id\x05"
        b"\xa6parent\x84"
        b"\xa6window\x04"
        b"\xa6offset\x01"
        b"\xa5token\x09"
        b"\xa5start\x03"
        b"\xa4rank\x01"
        b"\xa6tokens\x92\x06\xcd\x01,"
        b"\xacproposal_ids\x93\xa5int32\x92\x02\x02"
        b"\xc4\x10\x06\x00\x00\x00\xff\xff\xff\xff,\x01\x00\x00\x06\x00\x00\x00"
        b"\xaeproposal_probs\x93\xa7float32\x92\x02\x02"
        b"\xc4\x10\x00\x00\x80?\x00\x00\x00\x00\x00\x00@?\x00\x00\x80>"
        b"\xa8draft_ms\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
    ),
    "SetMode": (
        b"\x83\xa4type\xa7SetMode"
        b"\xa7session\x07"
        b"\xa4mode\xa5alone"
    ),
    "Rollback": (
        b"\x86\xa4type\xa8Rollback"
        b"\xa7session\x07"
        b"\xa5epoch\x02"
        b"\xa4keep\x03"
        b"\xa6tokens\x92\x05\x06"
        b"\xa6window\x85"
        b"\xa5gamma\x05"
        b"\xa4wait\x02"
        b"\xabpatience_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa5ahead\xc2"
        b"\xa8outcomes\x92\x02\x01"
    ),
    "Advance": (
        b"\x86\xa4type\xa7Advance"
        b"\xa7session\x07"
        b"\xa5epoch\x02"
        b"\xa6length\x05"
        b"\xa6window\x85"
        b"\xa5gamma\x05"
        b"\xa4wait\x02"
        b"\xabpatience_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa5ahead\xc2"
        b"\xa8outcomes\x92\x02\x01"
        b"\xa6branch\x06"
    ),
    "SetWindow": (
        b"\x83\xa4type\xa9SetWindow"
        b"\xa7session\x07"
        b"\xa6window\x85"
        b"\xa5gamma\x05"
        b"\xa4wait\x02"
        b"\xabpatience_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa5ahead\xc2"
        b"\xa8outcomes\x92\x02\x01"
    ),
    "Pin": (
        b"\x82\xa4type\xa3Pin"
        b"\xa6videos\x91\xc4\x01\x05"
    ),
    "Ping": (
        b"\x82\xa4type\xa4Ping"
        b"\xa5nonce\x03"
    ),
    "Recall": (
        b"\x82\xa4type\xa6Recall"
        b"\xa6engine\x04"
    ),
    "Stop": b"\x81\xa4type\xa4Stop",
    "Hello": (
        b"\x85\xa4type\xa5Hello"
        b"\xa7version\x01"
        b"\xa4role\xa5draft"
        b"\xa4info\x8e"
        b"\xa4name\xa1m"
        b"\xa6family\xa1f"
        b"\xaavocab_size\xcd\x03\x00"
        b"\xadend_token_ids\x91\x02"
        b"\xb5tokenizer_fingerprint\xa1t"
        b"\xa6layers\x02"
        b"\xabhidden_size\xcc\x80"
        b"\xadmax_positions\xcd@\x00"
        b"\xaaparameters\xcd\x03\xe8"
        b"\xa5dtype\xa7float32"
        b"\xa6device\xa3cpu"
        b"\xa7backend\xa5torch"
        b"\xaebackend_reason\xa1r"
        b"\xadshares_passes\xc3"
        b"\xa3pidc"
    ),
    "Loading": (
        b"\x83\xa4type\xa7Loading"
        b"\xa4role\xa6target"
        b"\xa8fraction\xcb?\xe0\x00\x00\x00\x00\x00\x00"
    ),
    "Opened": (
        b"\x88\xa4type\xa6Opened"
        b"\xa7session\x07"
        b"\xa4role\xa6target"
        b"\xadprompt_tokens\x15"
        b"\xacvideo_tokens\x10"
        b"\xadcached_tokens\x11"
        b"\xa7open_ms\xcb?\xe0\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
    ),
    "NeedVideo": (
        b"\x83\xa4type\xa9NeedVideo"
        b"\xa7session\x07"
        b"\xa4role\xa5draft"
    ),
    "PrefillProgress": (
        b"\x84\xa4type\xafPrefillProgress"
        b"\xa7session\x07"
        b"\xa4role\xa5draft"
        b"\xa8fraction\xcb?\xd0\x00\x00\x00\x00\x00\x00"
    ),
    "PrefillDone": (
        b"\x86\xa4type\xabPrefillDone"
        b"\xa7session\x07"
        b"\xa4role\xa6target"
        b"\xadprompt_tokens\x15"
        b"\xaaprefill_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
    ),
    "Verdict": (
        b"\xde\x00\x10\xa4type\xa7Verdict"
        b"\xa7session\x07"
        b"\xa5epoch\x01"
        b"\xa5start\x02"
        b"\xa6tokens\x92\x05\x06"
        b"\xa8accepted\x01"
        b"\xa8rejected\xc3"
        b"\xa6window\x04"
        b"\xabpass_tokens\x05"
        b"\xaaown_tokens\x05"
        b"\xa7pass_ms\xcb?\xf8\x00\x00\x00\x00\x00\x00"
        b"\xa7ended_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
        b"\xa6finish\xa4stop"
        b"\xa6judged\x04"
        b"\xa6offset\x01"
        b"\xa6branch\x05"
    ),
    "PrefixesKept": (
        b"\x85\xa4type\xacPrefixesKept"
        b"\xa4role\xa6target"
        b"\xa5count\x03"
        b"\xa6nbytes\xcf\x00\x00\x00\x02\x00\x00\x00\x00"
        b"\xa7evicted\x04"
    ),
    "Began": (
        b"\x83\xa4type\xa5Began"
        b"\xa4role\xa5draft"
        b"\xa8sessions\x92\x07\xcd\x01,"
    ),
    "Closed": (
        b"\x83\xa4type\xa6Closed"
        b"\xa7session\x07"
        b"\xa4role\xa5draft"
    ),
    "Failed": (
        b"\x86\xa4type\xa6Failed"
        b"\xa7session\x07"
        b"\xa4role\xa6target"
        b"\xa5error\xabPromptError"
        b"\xa7message\xa8too long"
        b"\xa9traceback\xa9Traceback"
    ),
    "Dying": (
        b"\x85\xa4type\xa5Dying"
        b"\xa4role\xa5draft"
        b"\xa5error\xafCheckpointError"
        b"\xa7message\xacno such file"
        b"\xa9traceback\xa9Traceback"
    ),
    "Recalled": (
        b"\x84\xa4type\xa8Recalled"
        b"\xa4role\xa5draft"
        b"\xa5known\xc3"
        b"\xa8sessions\x92\x07\xcd\x01,"
    ),
    "Pong": (
        b"\x87\xa4type\xa4Pong"
        b"\xa5nonce\x03"
        b"\xa4role\xa5draft"
        b"\xa8progress\x11"
        b"\xa8sessions\x02"
        b"\xa7dropped\x01"
        b"\xa4at_s\xcb?\xd0\x00\x00\x00\x00\x00\x00"
    ),
}
# fmt: on
