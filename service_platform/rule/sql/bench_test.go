package sql

import "testing"

const telemetry = `{"device":"pump-17","temperature":21.75,"humidity":40,"pressure":1013.25,"status":{"battery":87,"rssi":-67,"firmware":"2.4.1"},` +
	`"tags":["hall 3","line b"],"sequence":184467,"ok":true,"note":"measured by the second sensor, the first one is being replaced"}`

// BenchmarkEval measures one message of 270 bytes through the statements that rules are mostly made of.
func BenchmarkEval(b *testing.B) {
	for _, c := range []struct{ name, statement string }{
		{"filter", "SELECT * FROM 'a' WHERE temperature > 20"},
		{"filtered out", "SELECT * FROM 'a' WHERE temperature > 90"},
		{"three fields", "SELECT device, temperature, status.battery AS battery FROM 'a' WHERE temperature > 20"},
		{"computed", "SELECT device, (temperature - 32) * 5 / 9 AS celsius, concat(upper(device), '-', status.firmware) AS id, topic(2) AS line, timestamp() AS ts FROM 'a' WHERE temperature > 20 AND status.battery < 90"},
		{"star and more", "SELECT *, topic(2) AS line, timestamp() AS ts FROM 'a'"},
		{"nested", "SELECT (SELECT VALUE * FROM tags) AS t FROM 'a'"},
	} {
		b.Run(c.name, func(b *testing.B) {
			s, err := Compile(c.statement)
			if err != nil {
				b.Fatal(err)
			}
			in := &Input{Topic: "plant/b/telemetry", ClientID: "pump-17", Payload: []byte(telemetry), Time: noon}
			b.ReportAllocs()
			b.SetBytes(int64(len(telemetry)))
			for b.Loop() {
				if _, _, err := s.Eval(in); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Compile("SELECT device, (temperature - 32) * 5 / 9 AS celsius FROM 'plant/+/telemetry' WHERE temperature > 20 AND status.battery < 90"); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTemplate(b *testing.B) {
	t, err := CompileTemplate("devices/${device}/${topic(2)}")
	if err != nil {
		b.Fatal(err)
	}
	in := &Input{Topic: "plant/b/telemetry", Payload: []byte(telemetry)}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := t.Eval(in, nil); err != nil {
			b.Fatal(err)
		}
	}
}
