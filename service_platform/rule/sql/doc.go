// Package sql is the rule language: the SQL dialect of AWS IoT, version 2016-03-23, as a library that does no I/O.
//
// Compile reads a statement once; Statement.Eval applies it to a message. A statement reads of the payload only what it
// names, without building maps of it. Statement.Explain tells why a message was or was not taken, expression by
// expression. CompileTemplate reads texts with ${…} in them.
//
// The semantics are those of the public documentation (https://docs.aws.amazon.com/iot/latest/developerguide/iot-sql-reference.html):
// a value that is missing, and a function that is called wrongly, is Undefined; Undefined spreads through operators, does
// not satisfy WHERE, and is left out of the output. README.md lists what is an extension and what differs.
//
// Statements and templates are immutable and safe for concurrent use.
package sql
