"""A partner's model behind an OpenAI-compatible HTTP API, as an lm_eval model. Every answer is paid for once.

Map: `config` what is known of the endpoint · `request` what is asked, and its key · `journal` everything sent and
answered, on disk before it is used: cache, record and bill in one · `budget` and `rate_limit` when a request may be
sent (both pure) · `sending` one attempt over HTTP · `client` many requests at a time, tried again where that can help ·
`usage` tokens, money and speed · `logprobs` scores in an echoed prompt · `choices` multiple choice by asking for a
letter · `lm` the lm_eval model.
"""
