-- title: Does a role look the same in all blocks?
-- about: The profile of a matrix is its mean p-value by decile of the spectrum. One line per role, shape and side says
--   how the profiles of the blocks agree. A role that looks the same everywhere has correlation near 1, and a spread near
--   noise or small beside range. Several matrices of one role in one block (experts, say) are averaged first. Roles that
--   stand in one block only, and what stands outside the blocks, have nothing to be compared with and are left out.
-- param: model VARCHAR = NULL | only this model
-- param: revision VARCHAR = NULL | the newest revision that begins with this, instead of the newest
-- param: role VARCHAR = NULL | only this role
-- param: heads BOOLEAN = FALSE | slices of single attention heads instead of whole matrices
-- column: model | the model's name
-- column: stack | encoder or decoder where the model has both
-- column: role | what the matrix does in its block
-- column: module | cross_attention, shared experts and the like, where one role stands twice in a block
-- column: rows | output features
-- column: cols | input features
-- column: side | v: right vectors (input), u: left vectors (output)
-- column: blocks | blocks that have such a matrix
-- column: p | mean p-value, first over a block's deciles, then over blocks
-- column: p_std | sample standard deviation of the blocks' mean p-value
-- column: lowest_p | the smallest mean p-value of a block
-- column: lowest_layer | that block
-- column: highest_p | the largest mean p-value of a block
-- column: highest_layer | that block
-- column: range | largest minus smallest decile of the mean profile: how much there is to agree about
-- column: spread | sample standard deviation between blocks of one decile's mean p-value, root mean square over deciles
-- column: noise | the spread that p-values of random vectors would have
-- column: correlation | of a block's profile with the mean profile of the other blocks, mean over blocks; empty if one
--   of them is flat
with per_block as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        layer,
        10 - (10 * k) // least(rows, cols) as decile,
        avg(u_p) as u_p,
        count(u_p) as u_vectors,
        avg(v_p) as v_p,
        count(v_p) as v_vectors
    from vectors
    semi join chosen_scans($model, $revision) using (scan_id)
    where layer is not null and ($role is null or role = $role) and (head is not null) = $heads
    group by all
),

profiles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        layer,
        decile,
        case side when 'u' then u_p else v_p end as p,
        case side when 'u' then u_vectors else v_vectors end as vectors
    from per_block
    cross join (values ('v'), ('u')) as sides (side)
    where vectors > 0
),

beside_others as (
    select
        *,
        (sum(p) over of_decile - p) / nullif(count(*) over of_decile - 1, 0) as others
    from profiles
    window of_decile as (partition by model, stack, role, module, rows, cols, side, decile)
),

blocks as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        layer,
        avg(p) as p,
        case when stddev_pop(p) > 0 and stddev_pop(others) > 0 then corr(p, others) end as correlation
    from beside_others
    group by all
),

deciles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        decile,
        avg(p) as p,
        var_samp(p) as variance,
        avg(1 / 12 / vectors) as noise
    from profiles
    group by all
),

over_blocks as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        count(*)::integer as blocks,
        avg(p) as p,
        stddev_samp(p) as p_std,
        min(p) as lowest_p,
        arg_min(layer, p) as lowest_layer,
        max(p) as highest_p,
        arg_max(layer, p) as highest_layer,
        avg(correlation) as correlation
    from blocks
    group by all
),

over_deciles as (
    select
        model,
        stack,
        role,
        module,
        rows,
        cols,
        side,
        max(p) - min(p) as range,
        sqrt(avg(variance)) as spread,
        sqrt(avg(noise)) as noise
    from deciles
    group by all
)

select
    over_blocks.* exclude (correlation),
    over_deciles.range,
    over_deciles.spread,
    over_deciles.noise,
    over_blocks.correlation
from over_blocks
join over_deciles
    on over_deciles.model = over_blocks.model
    and over_deciles.stack is not distinct from over_blocks.stack
    and over_deciles.role = over_blocks.role
    and over_deciles.module is not distinct from over_blocks.module
    and over_deciles.rows = over_blocks.rows
    and over_deciles.cols = over_blocks.cols
    and over_deciles.side = over_blocks.side
where over_blocks.blocks > 1
order by
    over_blocks.model,
    over_blocks.stack desc nulls first,
    role_order(over_blocks.role),
    over_blocks.role,
    over_blocks.module nulls first,
    over_blocks.rows,
    over_blocks.cols,
    over_blocks.side desc;
