from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from agents.policies.names import ModelError, check_chat_template

GOOD = "{% for m in messages %}{%- generation -%}{{ m }}{% endgeneration %}{% break %}{% endfor %}"


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_a_mistake_in_the_syntax_of_a_chat_template_is_found_in_its_file(file: str, tmp_path: Path) -> None:
    def write(template: str) -> None:
        config = json.dumps({"chat_template": template})
        (tmp_path / file).write_text(template if file.endswith("jinja") else config)

    write(GOOD)
    check_chat_template([tmp_path])
    write("{% for m in messages %}\n{{ m }\n{% endfor %}")
    with pytest.raises(ModelError, match=rf"{file}: line 2 of the chat template is wrong: unexpected '}}'"):
        check_chat_template([tmp_path])


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}",
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system prompt is needed') }}{% endif %}",
        "{{ bos_token + messages[0].content }}",  # the tokenizer defines it
        "{{ messages[0].content | length + eos_token | length }}",
    ],
)
def test_a_chat_template_that_may_work_is_accepted(template: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(template)
    check_chat_template([tmp_path])


def test_a_chat_template_that_always_raises_is_refused_without_torch(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('tools\nonly') }}")
    script = (
        "import sys; from agents.policies.names import ModelError, check_chat_template; from pathlib import Path\n"
        "try: check_chat_template([Path(sys.argv[1])])\n"
        "except ModelError as error: print(error, 'torch' in sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert said.endswith("chat_template.jinja: the chat template fails: tools only False")
