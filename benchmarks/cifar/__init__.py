"""Pretrained residual networks for CIFAR-10, as akamaster/pytorch_resnet_cifar10 builds them."""
