"""Names and shapes of tensors -> which architectures of torchvision and timm have them."""

from prunecli.architectures.recognise import Match, Near, Recognised, recognise

__all__ = ["Match", "Near", "Recognised", "recognise"]
