-- title: Singular values outside the Marchenko-Pastur bulk, by layer and role
-- about: Each cell is left|right: the numbers of singular values below and above the bulk (Table 3 of arXiv 2410.17770).
--   Several matrices of one role in one layer (such as experts) are added up. The row without a layer has the matrices
--   outside the blocks; column other has embedding, lm_head, router and other. A cell is NULL where the chosen sigma has no
--   edges: the fit of bulk failed, or a version that did not store them made the scan.
-- param: model VARCHAR = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: heads BOOLEAN = FALSE | slices of attention heads instead of whole matrices
-- param: sigma VARCHAR = NULL | edges of this estimate of sigma instead of the one of the scan: median, std, bulk, init (of the
--   config, or else 1 / sqrt(rows)) or init_rows (1 / sqrt(rows))
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block
-- column: query | left|right of the query matrix
-- column: key | left|right of the key matrix
-- column: value | left|right of the value matrix
-- column: attn_out | left|right of the attention's output matrix
-- column: mlp_up | left|right of the MLP's up-projection
-- column: mlp_gate | left|right of the MLP's gate
-- column: mlp_down | left|right of the MLP's down-projection
-- column: other | left|right of all other roles together
with cells as (
    select
        model,
        stack,
        layer,
        case
            when role in ('query', 'key', 'value', 'attn_out', 'mlp_up', 'mlp_gate', 'mlp_down') then role
            else 'other'
        end as place,
        case when count(outliers_right) = count(*) then sum(outliers_left) || '|' || sum(outliers_right) end as cell
    from matrices_by_sigma($sigma, $model, $revision)
    where (head is not null) = $heads and role not in ('qk', 'ov')
    group by model, stack, layer, place
)

select
    model,
    stack,
    layer,
    max(cell) filter (where place = 'query') as query,
    max(cell) filter (where place = 'key') as key,
    max(cell) filter (where place = 'value') as value,
    max(cell) filter (where place = 'attn_out') as attn_out,
    max(cell) filter (where place = 'mlp_up') as mlp_up,
    max(cell) filter (where place = 'mlp_gate') as mlp_gate,
    max(cell) filter (where place = 'mlp_down') as mlp_down,
    max(cell) filter (where place = 'other') as other
from cells
group by model, stack, layer
order by model, stack desc nulls first, layer nulls last;
