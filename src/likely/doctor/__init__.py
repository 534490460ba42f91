"""The examination of a distillation loss: does it compute what its author means?"""
