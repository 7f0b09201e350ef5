-- title: Singular values outside the Marchenko-Pastur bulk, by layer and role
-- about: Numbers of singular values below and above the bulk (Table 3 of arXiv 2410.17770); a terminal shows them as below|above.
--   Several matrices of one role in one layer (such as experts) are added up. The row without a layer has the matrices
--   outside the blocks; columns other have embedding, lm_head, router and other. Both are NULL where the chosen sigma has no
--   edges: the fit of bulk failed, or a version that did not store them made the scan.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: sigma VARCHAR = NULL | edges of this estimate of sigma instead of the one of the scan: median, std, bulk, init (of the
--   config, or else 1 / sqrt(rows)) or init_rows (1 / sqrt(rows))
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: query_below | singular values below the bulk, of the query matrix
-- column: query_above | singular values above the bulk, of the query matrix
-- column: key_below | singular values below the bulk, of the key matrix
-- column: key_above | singular values above the bulk, of the key matrix
-- column: value_below | singular values below the bulk, of the value matrix
-- column: value_above | singular values above the bulk, of the value matrix
-- column: attn_out_below | singular values below the bulk, of the attention's output matrix
-- column: attn_out_above | singular values above the bulk, of the attention's output matrix
-- column: mlp_up_below | singular values below the bulk, of the MLP's up-projection
-- column: mlp_up_above | singular values above the bulk, of the MLP's up-projection
-- column: mlp_gate_below | singular values below the bulk, of the MLP's gate
-- column: mlp_gate_above | singular values above the bulk, of the MLP's gate
-- column: mlp_down_below | singular values below the bulk, of the MLP's down-projection
-- column: mlp_down_above | singular values above the bulk, of the MLP's down-projection
-- column: other_below | singular values below the bulk, of all other roles together
-- column: other_above | singular values above the bulk, of all other roles together
-- show: model, stack, layer, query = query_below | query_above, key = key_below | key_above, value = value_below | value_above,
--   attn_out = attn_out_below | attn_out_above, mlp_up = mlp_up_below | mlp_up_above, mlp_gate = mlp_gate_below | mlp_gate_above,
--   mlp_down = mlp_down_below | mlp_down_above, other = other_below | other_above
-- total of one model: query_below, query_above, key_below, key_above, value_below, value_above, attn_out_below, attn_out_above,
--   mlp_up_below, mlp_up_above, mlp_gate_below, mlp_gate_above, mlp_down_below, mlp_down_above, other_below, other_above
with cells as (
    select
        model,
        stack,
        layer,
        role_column(role) as place,
        case when count(outliers_right) = count(*) then sum(outliers_left) end::integer as below,
        case when count(outliers_right) = count(*) then sum(outliers_right) end::integer as above
    from matrices_by_sigma($sigma, $model, $revision)
    where (head is not null) = $heads and role not in ('qk', 'ov')
    group by model, stack, layer, place
)

select
    model,
    stack,
    layer,
    max(below) filter (where place = 'query') as query_below,
    max(above) filter (where place = 'query') as query_above,
    max(below) filter (where place = 'key') as key_below,
    max(above) filter (where place = 'key') as key_above,
    max(below) filter (where place = 'value') as value_below,
    max(above) filter (where place = 'value') as value_above,
    max(below) filter (where place = 'attn_out') as attn_out_below,
    max(above) filter (where place = 'attn_out') as attn_out_above,
    max(below) filter (where place = 'mlp_up') as mlp_up_below,
    max(above) filter (where place = 'mlp_up') as mlp_up_above,
    max(below) filter (where place = 'mlp_gate') as mlp_gate_below,
    max(above) filter (where place = 'mlp_gate') as mlp_gate_above,
    max(below) filter (where place = 'mlp_down') as mlp_down_below,
    max(above) filter (where place = 'mlp_down') as mlp_down_above,
    max(below) filter (where place = 'other') as other_below,
    max(above) filter (where place = 'other') as other_above
from cells
group by model, stack, layer
order by model, stack desc nulls first, layer nulls last;
