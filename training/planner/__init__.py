"""What a run will take, before it is started: memory, step time, goodput, price. No torch.

job        a training stage as numbers, whoever runs it
"""
