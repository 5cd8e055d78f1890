from __future__ import annotations

import json
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
