"""The recipe of mjbommar/laam, whose idea this project is, first stage: its model, optimizer and batches.

What differs from it is listed in docs/log/2026-11-27.md, under "The original's recipe".
"""
hidden_size = 64
intermediate_size = 256
num_hidden_layers = 8
num_attention_heads = 32
num_key_value_heads = 4
max_position_embeddings = 512
tie_word_embeddings = False
optimizer = "adamw"
learning_rate = 1e-3
beta2 = 0.999
batch_size = 64
micro_batch = 4
epochs = 100
warmup_steps = 100
decay = 1.0
checkpoint_every = 20
