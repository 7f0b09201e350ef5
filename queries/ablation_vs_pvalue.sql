-- title: Do the least random deciles matter most?
-- about: Spearman's rank correlation, over the ten deciles of the spectrum, between the damage from removing a decile and its
--   properties in a scan: the mean p-value of its singular vectors (v and u), the share of outliers (singular values
--   outside the bulk), and the number of the decile (the size of the singular values). The papers claim a p_correlation
--   near -1 and an outlier_correlation near 1, larger than decile_correlation where decile 1 matters. Requires all ten
--   deciles, and in the same store a scan of all changed matrices. The deviation of p from 0.5 is the sum of two predictors of their
--   own: scale, the mean of p_scale - p, which row and column variances explain, and direction, 0.5 minus the mean of p_scale,
--   which they do not. given_size is a partial correlation: of the ranks without what is linear in the decile. The columns ending
--   in _p are two-sided p-values of these by 1,999 permutations (of the remainders, for a partial correlation), the same ones
--   everywhere; a simulation gives 4 to 6 % below 0.05. With ten deciles a correlation below 0.65 is not significant at 5 %. They are not corrected for the number of rows.
-- param: model MODEL = NULL | this model only
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
-- column: p_correlation_p | p-value of p_correlation
-- column: p_given_size | partial correlation of damage with mean p-value, given the decile
-- column: p_given_size_p | its p-value
-- column: scale_correlation | damage against scale; positive: deciles that deviate by scale matter more; NULL without a scale null
-- column: scale_given_size | its partial correlation, given the decile
-- column: scale_given_size_p | p-value of that
-- column: direction_correlation | damage against direction; positive: deciles that deviate by direction matter more
-- column: direction_given_size | its partial correlation, given the decile
-- column: direction_given_size_p | p-value of that
-- column: worst | decile whose removal does the most damage
-- column: second | decile with the second largest damage
-- column: damage_1 | damage without decile 1, the smallest singular values
-- column: damage_middle | mean damage without deciles 4 to 7
-- show: model, metric, roles, p_correlation, p_correlation_p, p_given_size, p_given_size_p, outlier_correlation,
--   decile_correlation, worst
with points as (
    -- Damage decreases accuracy, but increases the other metrics.
    select *, case when metric = 'accuracy' or starts_with(metric, 'lm-eval:') then -delta else delta end as damage
    from scanned_deciles($model, $run, $metric)
),

ranked as (
    select
        *,
        -- Equal values get the mean of their ranks.
        rank() over (of_group order by damage) + (count(*) over (partition by run_id, roles, layers, damage) - 1) / 2 as damage_rank,
        rank() over (of_group order by p) + (count(*) over (partition by run_id, roles, layers, p) - 1) / 2 as p_rank,
        rank() over (of_group order by scale) + (count(*) over (partition by run_id, roles, layers, scale) - 1) / 2 as scale_rank,
        rank() over (of_group order by direction)
        + (count(*) over (partition by run_id, roles, layers, direction) - 1) / 2 as direction_rank,
        rank() over (of_group order by outliers) + (count(*) over (partition by run_id, roles, layers, outliers) - 1) / 2 as outlier_rank
    from points
    window of_group as (partition by run_id, roles, layers)
),

grouped as (
    select
        run_id,
        model,
        metric,
        roles,
        layers,
        nullif(corr(damage_rank, outlier_rank), 'nan') as outlier_correlation,
        corr(damage_rank, decile) as decile_correlation,
        arg_max(decile, damage)::integer as worst,
        (max_by(decile, damage, 2)[2])::integer as second,
        max(damage) filter (where decile = 1) as damage_1,
        avg(damage) filter (where decile between 4 and 7) as damage_middle,
        centered(list(decile::double order by decile)) as size,
        centered(list(damage_rank::double order by decile)) as damages,
        case when count(p) = 10 then centered(list(p_rank::double order by decile)) end as by_p,
        case when count(scale) = 10 then centered(list(scale_rank::double order by decile)) end as by_scale,
        case when count(direction) = 10 then centered(list(direction_rank::double order by decile)) end as by_direction
    from ranked
    group by run_id, model, metric, roles, layers
    having count(damage) = 10
),

predictors as (
    select
        run_id,
        roles,
        layers,
        size,
        damages,
        unnest(['p', 'scale', 'direction']) as predictor,
        unnest([by_p, by_scale, by_direction]) as other
    from grouped
),

-- Pairs of vectors whose cosine is the correlation that is asked for.
pairs as (
    select run_id, roles, layers, predictor, damages as damage, other, null as given
    from predictors
    where predictor = 'p' and other is not null
    union all
    select
        run_id,
        roles,
        layers,
        predictor || ' given size' as predictor,
        without_part(damages, size) as damage,
        without_part(other, size) as other,
        size as given
    from predictors
    where other is not null
),

tested as (
    select
        run_id,
        roles,
        layers,
        predictor,
        any_value(list_cosine(damage, other)) as correlation,
        -- A permuted remainder is no longer orthogonal to size: its correlation is that of what is left of it, otherwise p would be
        -- too small. The permutation of the data is one of those that are counted.
        (1 + count(*) filter (
            where list_dot_product(list_select(damage, permutation), other) ** 2 / (
                list_dot_product(damage, damage)
                - coalesce(
                    list_dot_product(list_select(damage, permutation), given) ** 2 / list_dot_product(given, given), 0
                )
            ) >= list_dot_product(damage, other) ** 2 / list_dot_product(damage, damage) - 1e-9
        )) / (1 + count(*)) as p_value
    from pairs
    cross join permutations_of_ten(1999)
    where list_cosine(damage, other) is not null
    group by run_id, roles, layers, predictor
),

answers as (
    select
        run_id,
        roles,
        layers,
        any_value(p_value) filter (where predictor = 'p') as p_correlation_p,
        any_value(correlation) filter (where predictor = 'p given size') as p_given_size,
        any_value(p_value) filter (where predictor = 'p given size') as p_given_size_p,
        any_value(correlation) filter (where predictor = 'scale given size') as scale_given_size,
        any_value(p_value) filter (where predictor = 'scale given size') as scale_given_size_p,
        any_value(correlation) filter (where predictor = 'direction given size') as direction_given_size,
        any_value(p_value) filter (where predictor = 'direction given size') as direction_given_size_p
    from tested
    group by run_id, roles, layers
)

select
    run_id,
    model,
    metric,
    roles,
    layers,
    list_cosine(damages, by_p) as p_correlation,
    outlier_correlation,
    decile_correlation,
    p_correlation_p,
    p_given_size,
    p_given_size_p,
    list_cosine(damages, by_scale) as scale_correlation,
    scale_given_size,
    scale_given_size_p,
    list_cosine(damages, by_direction) as direction_correlation,
    direction_given_size,
    direction_given_size_p,
    worst,
    second,
    damage_1,
    damage_middle
from grouped
left join answers using (run_id, roles, layers)
order by
    model,
    metric,
    run_id,
    role_order(split_part(roles, ',', 1)),
    roles,
    try_cast(regexp_extract(layers, '\d+') as integer),
    layers;
