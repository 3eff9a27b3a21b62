package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/naru-platform/naru/device/simulator"
)

func simCommand(o *options) *cobra.Command {
	var n int
	var rate time.Duration
	var seed uint64
	var server, prefix string
	c := &cobra.Command{
		Use: "sim", Short: "Run simulated devices against a running platform", Args: cobra.NoArgs,
		Long:    "Enrols simulated devices with a running platform and has them send, each with its own certificate, until Ctrl-C.",
		Example: "  naru sim -n 100 --rate 500ms --prefix lab-",
		RunE: func(c *cobra.Command, _ []string) error {
			if n < 1 || rate <= 0 {
				return fmt.Errorf("--devices %d --rate %s: want at least one device, and a time between its readings such as 500ms", n, rate)
			}
			cl, err := o.client()
			if err != nil {
				return err
			}
			if err := simulatedAlready(c.Context(), cl, prefix+"0"); err != nil {
				return err
			}
			if server == "" {
				host, port := splitAddr(cl.MQTT)
				server = host + ":" + port
			}
			return simulate(c, cl, simulator.Options{Devices: n, Rate: rate, Server: server, Seed: seed, Prefix: prefix})
		},
	}
	f := c.Flags()
	f.IntVarP(&n, "devices", "n", 20, "how many")
	f.DurationVar(&rate, "rate", time.Second, "between two readings of a device")
	f.Uint64Var(&seed, "seed", 1, "the same seed gives the same readings")
	f.StringVar(&server, "mqtt", "", "address of the broker (default: the running platform's)")
	f.StringVar(&prefix, "prefix", "sim-", "of the devices' ids")
	return c
}

// simulatedAlready refuses ids that are in use: two fleets of one name take their connections from each other without end.
func simulatedAlready(ctx context.Context, cl *client, first string) error {
	var there []json.RawMessage
	err := cl.get(ctx, "/api/v1/broker/connections", url.Values{"device": {first}}, &there)
	if err == nil && len(there) > 0 {
		return fmt.Errorf("%s is connected already, as naru up --sim or another naru sim has it; give these another --prefix, such as --prefix lab-", first)
	}
	return nil // where no broker is in the process that was asked, the devices will see
}

func simulate(c *cobra.Command, cl *client, o simulator.Options) error {
	ca, err := fetchCA(c.Context(), cl)
	if err != nil {
		return err
	}
	o.CA = ca
	var bar *progressbar.ProgressBar
	if term.IsTerminal(int(os.Stderr.Fd())) {
		bar = progressbar.NewOptions(o.Devices, progressbar.OptionSetDescription("enrolling"), progressbar.OptionSetWriter(os.Stderr), progressbar.OptionClearOnFinish())
	}
	platform := &self{client: cl}
	o.Provision = func(ctx context.Context, id string) (tls.Certificate, error) {
		cert, key, err := platform.Enrol(ctx, id)
		if err != nil {
			return tls.Certificate{}, err
		}
		if bar != nil {
			_ = bar.Add(1) // a picture
		}
		return tls.X509KeyPair(cert, key)
	}
	var fleet simulator.Fleet
	done := make(chan error, 1)
	go func() { done <- fleet.Run(c.Context(), o) }()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if errors.Is(err, context.Canceled) {
				err = nil
			}
			return err
		case <-tick.C:
			s := fleet.Stats()
			fmt.Fprintf(c.OutOrStdout(), "%d connected, %d sent, %d acknowledged, %d reconnects\n", s.Connected, s.Sent, s.Acked, s.Reconnects)
		}
	}
}
