package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/naru-platform/naru/service_platform/worker"
	"github.com/naru-platform/naru/service_platform/worker/sdk"
)

const (
	mechanicAgain = time.Second     // it looks whether the worker is there
	mechanicWorth = 2 * time.Minute // of a command: a pump has long started by itself then
)

// mechanic does the work of the worker for simulated devices, connected with the SDK as anybody's worker is, until ctx is
// done. Where the worker of that name is somebody's own it keeps its hands off.
func mechanic(ctx context.Context, cl *client, log *slog.Logger) {
	o := sdk.Options{URLs: []string{cl.URL}, Token: cl.Token, Name: "inside naru", Concurrency: 4}
	if cl.CA != "" {
		o.CA = []byte(cl.CA)
	}
	tick := time.NewTicker(mechanicAgain)
	defer tick.Stop()
	for {
		var w worker.Shown
		if err := cl.get(ctx, workerPath(worker.DemoName, ""), nil, &w); err == nil && w.Demo {
			if err = sdk.Run(ctx, worker.DemoName, mend, o); err != nil { // as when the worker was taken away
				log.Debug("the worker for simulated devices stopped", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// mend has a pump that stands still start again.
func mend(_ context.Context, c *sdk.Call) error {
	var pump struct{ Device, State string }
	if err := json.Unmarshal(c.Message.Data, &pump); err != nil || pump.Device == "" {
		return sdk.Reject(fmt.Errorf("no pump is named: %s", c.Message.Data))
	}
	// The message's id names the command: given twice, it is still one.
	return c.SayMessage(sdk.Message{Subject: "device." + pump.Device + ".command.restart." + c.Message.ID, Device: pump.Device,
		Expires: c.Message.Time.Add(mechanicWorth), ContentType: "application/json", Data: []byte(`{"because":"it stands still"}`)})
}
