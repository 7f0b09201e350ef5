-- title: Do the deciles that look least random matter most
-- about: Spearman's rank correlation, over the ten deciles of the spectrum, between the damage their removal does and what a scan says
--   of them: the mean p-value of their singular vectors (v and u), the share of outliers (values outside the random bulk), and the
--   decile itself (the size of the singular values). The papers' claim is a p_correlation near -1 and an outlier_correlation near 1,
--   beyond decile_correlation where decile 1 hurts. Needs all ten deciles, and in the same store a scan of all matrices that were
--   changed.
-- param: model VARCHAR = NULL | only this model
-- param: run VARCHAR = NULL | only this run (one model, metric, text and precision)
-- param: metric VARCHAR = NULL | only perplexity, accuracy or kl
-- column: run_id | one model, metric, text and precision
-- column: model | the model's name
-- column: metric | perplexity, accuracy or kl
-- column: roles | roles that were changed
-- column: layers | blocks that were changed
-- column: p_correlation | damage against mean p-value; negative: what looks random matters less; empty where a decile has no p (zeros)
-- column: outlier_correlation | damage against the share of outliers; empty where it is the same everywhere
-- column: decile_correlation | damage against the decile; 1: the larger the singular values, the more they matter
-- column: worst | the decile whose removal does most damage
-- column: second | the next
-- column: damage_1 | damage without decile 1, the smallest singular values
-- column: damage_middle | mean damage without deciles 4 to 7
with points as (
    -- Accuracy falls where the others rise.
    select *, case metric when 'accuracy' then -delta else delta end as damage
    from scanned_deciles($model, $run, $metric)
),

ranked as (
    select
        *,
        -- Equal values share the mean of their ranks.
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
