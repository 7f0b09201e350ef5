-- title: Randomness of the singular vectors of attention heads, by depth
-- about: Mean p-value of the Kolmogorov-Smirnov test over the singular vectors of the slice of each head (rows of query, key
--   and value, columns of attn_out), from scans with --heads. Random matrices have a mean of 0.5; lower values mean that a
--   head differs more from i.i.d. Key and value have fewer heads than query in models with grouped-query attention.
--   Scans with --products
--   also have the products qk and ov of each head: see head_products.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: role | query, key, value, attn_out, qk or ov
-- column: module | cross_attention, if the block has it in addition to self-attention
-- column: head | index of the head
-- column: rows | output features of the slice
-- column: cols | input features of the slice
-- column: outliers_below | singular values below the bulk
-- column: outliers_above | singular values above the bulk
-- column: u_p | left singular vectors: mean p-value
-- column: v_p | right singular vectors: mean p-value
-- column: p | mean of u_p and v_p
-- show: model, stack, role, layer, module, head, shape = rows x cols, outliers = outliers_below | outliers_above, u_p, v_p, p
-- total of one model: outliers_below, outliers_above
select
    model,
    stack,
    layer,
    role,
    module,
    head,
    rows,
    cols,
    outliers_left as outliers_below,
    outliers_right as outliers_above,
    u_p_mean as u_p,
    v_p_mean as v_p,
    (u_p_mean + v_p_mean) / 2 as p
from matrices
semi join chosen_scans($model, $revision) using (scan_id)
where head is not null and ($role is null or role = $role)
order by model, stack desc nulls first, layer, role_order(role), role, module nulls first, head;
