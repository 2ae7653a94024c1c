"""Run OpenVINO GenAI's continuous batching in the environment of its own; `openvino_genai_peer` starts this file there.

One argument: a JSON object with the `model` (a GGUF file), `threads` and `cache`, the gigabytes for keys and values.
Prints "ready". Then, for each line of standard input, a JSON object with `prompts`, `clients` and `max_tokens`, it
keeps as many requests running as there are clients until all prompts are answered, and prints one line: the total
seconds, and for each prompt when it was sent, its first token came and it ended, with its number of tokens.
"""

import json
import sys
import time

import openvino_genai

given = json.loads(sys.argv[1])
scheduling = openvino_genai.SchedulerConfig()
scheduling.cache_size = given["cache"]
scheduling.enable_prefix_caching = False
pipeline = openvino_genai.ContinuousBatchingPipeline(
    given["model"], scheduling, "CPU", {"INFERENCE_NUM_THREADS": given["threads"]}
)
print("ready", flush=True)

for line in sys.stdin:
    work = json.loads(line)
    settings = openvino_genai.GenerationConfig()
    settings.max_new_tokens = work["max_tokens"]
    settings.ignore_eos = True
    settings.do_sample = False
    settings.apply_chat_template = False
    waiting = list(enumerate(work["prompts"]))[::-1]
    running, answers, started = {}, {}, time.perf_counter()
    while waiting or running:
        while waiting and len(running) < work["clients"]:
            number, prompt = waiting.pop()
            answers[number] = {"sent": time.perf_counter() - started, "tokens": 0}
            running[number] = pipeline.add_request(number, prompt, settings)
        pipeline.step()
        now = time.perf_counter() - started
        for number, handle in list(running.items()):
            answer = answers[number]
            if handle.can_read():
                count = sum(len(output.generated_ids) for output in handle.read().values())
                if count and not answer["tokens"]:
                    answer["first"] = now
                answer["tokens"] += count
            if answer["tokens"] >= work["max_tokens"]:
                answer["ended"] = now
                del running[number]
    seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "answers": [answers[number] for number in sorted(answers)]}), flush=True)
