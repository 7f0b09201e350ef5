-- title: Attention heads without their gauge: products of queries with keys, and of outputs with values
-- about: Queries and keys of a head are defined up to an invertible map between them, and so are outputs and values: only
--   W_q^T W_k (qk) and W_o W_v (ov) mean something. One row per product, from scans with --products. Singular values are compared
--   with the law of a product of two random matrices, singular vectors with random vectors (mean p of 0.5; |z| above 4 is a
--   deviation). The left side of qk is that of queries, the right one that of keys; the left side of ov is the output, the right
--   one the input.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | qk or ov only
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: role | qk or ov
-- column: module | cross_attention, if the block has it in addition to self-attention
-- column: head | index of the head
-- column: kv_head | index of the key-value head, which several heads may share
-- column: between | what the model does between queries and keys (rotary, norm), without which the product is
-- column: rank | number of singular values that are not numerically zero
-- column: outliers_below | singular values below the law of random products
-- column: outliers_above | singular values above it
-- column: distance | largest distance between the spectrum and the law
-- column: effective_rank | exp of the entropy of the singular values
-- column: u_p | left singular vectors: mean p-value
-- column: v_p | right singular vectors: mean p-value
-- column: z | (mean of u_p and v_p) - 0.5 in standard errors of random vectors, sqrt(1 / 24 / rank)
-- show: model, stack, layer, module, role, head, outliers = outliers_below | outliers_above, effective_rank, u_p, v_p, z
-- total of one model: outliers_below, outliers_above
select
    model,
    stack,
    layer,
    role,
    module,
    head,
    kv_head,
    "between",
    rank,
    outliers_left as outliers_below,
    outliers_right as outliers_above,
    mp_ks as distance,
    effective_rank,
    u_p_mean as u_p,
    v_p_mean as v_p,
    ((u_p_mean + v_p_mean) / 2 - 0.5) * sqrt(24 * nullif(rank, 0)) as z
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
where role in ('qk', 'ov') and ($role is null or role = $role)
order by model, stack desc nulls first, layer, role_order(role), role, module nulls first, head, tensor;
