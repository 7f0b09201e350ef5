-- The syntax tree of a statement, as JSON.
select json_serialize_sql($statement);
