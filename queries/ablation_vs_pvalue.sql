-- title: Do the least random deciles matter most?
-- about: Spearman's rank correlation, over the ten deciles of the spectrum, between the damage from removing a decile and its
--   properties in a scan: the mean p-value of its singular vectors (v and u), the share of outliers (singular values
--   outside the bulk), and the number of the decile (the size of the singular values). The papers claim a p_correlation
--   near -1 and an outlier_correlation near 1, larger than decile_correlation where decile 1 matters. Requires all ten
--   deciles, and in the same store a scan of all changed matrices.
-- param: model VARCHAR = NULL | this model only
-- param: run VARCHAR = NULL | this run only (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | this metric only: perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | name of the model
-- column: metric | perplexity, accuracy or kl
-- column: roles | roles of the changed matrices
-- column: layers | blocks of the changed matrices
-- column: p_correlation | damage against mean p-value; negative: random deciles matter less; NULL if a decile has no p-values
-- column: outlier_correlation | damage against the share of outliers; NULL if it is the same in all deciles
-- column: decile_correlation | damage against the decile; 1: larger singular values matter more
-- column: worst | decile whose removal does the most damage
-- column: second | decile with the second largest damage
-- column: damage_1 | damage without decile 1, the smallest singular values
-- column: damage_middle | mean damage without deciles 4 to 7
with points as (
    -- Damage decreases accuracy, but increases the other metrics.
    select *, case metric when 'accuracy' then -delta else delta end as damage
    from scanned_deciles($model, $run, $metric)
),

ranked as (
    select
        *,
        -- Equal values get the mean of their ranks.
        rank() over (of_group order by damage) + (count(*) over (partition by run_id, roles, layers, damage) - 1) / 2 as damage_rank,
        rank() over (of_group order by p) + (count(*) over (partition by run_id, roles, layers, p) - 1) / 2 as p_rank,
        rank() over (of_group order by outliers) + (count(*) over (partition by run_id, roles, layers, outliers) - 1) / 2 as outlier_rank
    from points
    window of_group as (partition by run_id, roles, layers)
)

select
    run_id,
    model,
    metric,
    roles,
    layers,
    case when count(p) = 10 then nullif(corr(damage_rank, p_rank), 'nan') end as p_correlation,
    nullif(corr(damage_rank, outlier_rank), 'nan') as outlier_correlation,
    corr(damage_rank, decile) as decile_correlation,
    arg_max(decile, damage)::integer as worst,
    (max_by(decile, damage, 2)[2])::integer as second,
    max(damage) filter (where decile = 1) as damage_1,
    avg(damage) filter (where decile between 4 and 7) as damage_middle
from ranked
group by run_id, model, metric, roles, layers
having count(damage) = 10
order by
    model,
    metric,
    run_id,
    role_order(split_part(roles, ',', 1)),
    roles,
    try_cast(regexp_extract(layers, '\d+') as integer),
    layers;
