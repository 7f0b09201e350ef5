-- title: Attention heads in singular vectors: is the mass of a vector in few heads
-- about: Right vectors of attention outputs and left vectors of queries, keys and values are made of heads. heads_effective is
--   1 / sum m^2 of the masses m of the heads in a vector: all heads if they are equal, 1 if one has everything. p tests it against
--   random vectors (0.5 on average, small if the mass is in fewer heads), with simulated masses. Heads whose weights are larger than
--   those of others concentrate the mass, too: p_scale tests what is left if entries are divided by their standard deviation under
--   the scale null. One row per role and region of the singular value, from scans with --head-mass.
-- param: model MODEL = NULL | this model only
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | this role only
-- param: layers BOOLEAN = FALSE | one row for each layer
-- column: model | name of the model
-- column: stack | encoder or decoder, if the model has both
-- column: layer | index of the block; NULL if all layers are in one row
-- column: role | query, key, value or attn_out
-- column: module | cross_attention, if the block has it in addition to self-attention
-- column: side | v: right singular vectors, u: left singular vectors
-- column: region | below, bulk (inside) or above
-- column: vectors | number of singular vectors
-- column: heads_effective | mean effective number of heads
-- column: p | mean p-value against random vectors
-- column: small | share of vectors with p below 0.01; 0.01 for random vectors
-- column: p_scale | mean p-value under the scale null
-- column: small_scale | share of vectors with p_scale below 0.01
-- show: model, stack, layer, role, module, side, region, vectors, heads_effective, p, p_scale
-- total of one model: vectors
with tested as (
    select
        vectors.* replace (case when $layers then layer end as layer),
        case when role = 'attn_out' then 'v' else 'u' end as side
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where heads_p is not null and ($role is null or role = $role)
)

select
    model,
    stack,
    layer,
    role,
    module,
    side,
    case region when 'left' then 'below' when 'right' then 'above' else region end as region,
    count(*)::integer as vectors,
    avg(heads_effective) as heads_effective,
    avg(heads_p) as p,
    avg((heads_p < 0.01)::integer) as small,
    avg(heads_p_scale) as p_scale,
    avg((heads_p_scale < 0.01)::integer) filter (where heads_p_scale is not null) as small_scale
from tested
group by model, stack, layer, role, module, side, tested.region
order by
    model,
    stack desc nulls first,
    layer nulls last,
    role_order(role),
    role,
    module nulls first,
    list_position(['left', 'bulk', 'right'], tested.region);
