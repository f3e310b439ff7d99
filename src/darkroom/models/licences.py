"""The licences of the models known by name, and what each asks of whoever serves a model to others.

A summary for people who decide, not the text: the link leads there.
"""

from __future__ import annotations

from darkroom.types import Licence

APACHE = Licence("Apache-2.0", "2.0", "https://www.apache.org/licenses/LICENSE-2.0")
OPEN_RAIL = Licence(
    "CreativeML Open RAIL++-M", "July 26, 2023",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    asks=(
        "make the use limits of its Attachment A an enforceable term of your agreement with your users",
        "give your users notice of these limits and a copy of the licence",
        "require that all who use the model through you keep them",
    ),
    notice="This model is licensed under the CreativeML Open RAIL++-M License; its use limits (Attachment A) bind every user",
)  # fmt: skip
STABILITY = Licence(
    "Stability AI Community License", "July 5, 2024", "https://stability.ai/community-license-agreement",
    asks=(
        'show "Powered by Stability AI" on the site, the user interface, an about page or the documentation',
        "give a copy of the agreement and keep its notice line",
        "follow the Acceptable Use Policy, and see that your users do",
        "register with Stability AI for commercial use; at a yearly revenue of USD 1 million or more it ends, and an Enterprise licence is needed",
        "do not train another foundation model on the outputs",
    ),
    notice="This Stability AI Model is licensed under the Stability AI Community License, Copyright (c) Stability AI Ltd. All Rights Reserved",
    badge="Powered by Stability AI",
)  # fmt: skip
TURBO = Licence(
    "Stability AI Non-Commercial Research Community License", "November 28, 2023",
    "https://huggingface.co/stabilityai/sdxl-turbo/blob/main/LICENSE.md",
    asks=(
        "use it for research and other non-commercial purposes only; commercial use needs a membership (https://stability.ai/license)",
        "give a copy of the agreement and keep its notice line",
        "follow the Acceptable Use Policy, and see that your users do",
    ),
    notice=(
        "This Stability AI Model is licensed under the Stability AI Non-Commercial Research Community License, "
        "Copyright (c) Stability AI Ltd. All Rights Reserved"
    ),
)  # fmt: skip

BY_HUB = {"apache-2.0": APACHE, "openrail++": OPEN_RAIL, "stabilityai-ai-community": STABILITY, "sai-nc-community": TURBO}


def stated(name: str) -> Licence:
    """The licence by the name that a repository on the hub or a darkroom.json states; one that is not known here asks nothing of us."""
    return BY_HUB.get(name.lower(), Licence(name))
